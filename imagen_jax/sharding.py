"""The device mesh, and the shardings of states, batches and large images. The only file that names mesh axes."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

# Sharding smaller leaves costs more in collectives than it saves in memory.
_MIN_SHARDED_BYTES = 2**20
_AXES = ("data", "fsdp", "height")


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None, *, height: int = 1) -> Mesh:
    """Return a (data, fsdp, height) mesh.

    Args:
      fsdp: number of devices over which each copy of the parameters is sharded.
      devices: None takes all devices of the run.
      height: number of devices over which the rows of each image are sharded, inside `jax.set_mesh(mesh)`.

    Raises:
      ValueError: `fsdp` x `height` does not divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if len(devices) == 0:
        raise ValueError(f"devices must be a list of at least one device; got {devices!r}.")
    _check_axis_sizes(len(devices), fsdp, height)
    shape = (len(devices) // (fsdp * height), fsdp, height)
    return jax.make_mesh(shape, _AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def abstract_mesh(num_devices: int, fsdp: int = 1, *, height: int = 1) -> AbstractMesh:
    """Return the mesh that `make_mesh` would make of `num_devices` devices, without needing them."""
    _check_axis_sizes(num_devices, fsdp, height)
    return AbstractMesh(
        (num_devices // (fsdp * height), fsdp, height), _AXES, axis_types=(AxisType.Auto,) * 3
    )


def _check_axis_sizes(num_devices: int, fsdp: int, height: int) -> None:
    for name, ways in {"fsdp": fsdp, "height": height}.items():
        if isinstance(ways, bool) or not isinstance(ways, int | np.integer) or ways < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {ways!r}.")
    for name, ways in {"fsdp": fsdp, "height": height, "fsdp x height": fsdp * height}.items():
        if num_devices % ways:
            raise ValueError(f"{name} must divide the number of devices {num_devices}; got {ways}.")


def num_batch_shards(mesh: Mesh) -> int:
    """Return the number of shards of a batch: the product of the mesh axes that split it."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Check that each part of an accumulated batch splits evenly over the devices.

    Raises:
      ValueError: it does not; names the nearest batch size that does.
    """
    ways = num_batch_shards(mesh)
    parts = ways * accumulation
    if batch_size % parts:
        raise ValueError(
            f"optim.batch_size must be divisible by devices x optim.accumulation = {ways} x {accumulation}; "
            f"got {batch_size}: use {max(1, round(batch_size / parts)) * parts}."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays with a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of arrays [B, ...] whose leading axis is split over "data" and "fsdp"."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(shapes: Any, mesh: Mesh) -> Any:
    """Return a sharding for each leaf of `shapes`: leaves of at least 1 MiB are split over "fsdp" along their largest
    divisible axis, the others are replicated."""

    def leaf(shape: jax.ShapeDtypeStruct) -> NamedSharding:
        spec: list[str | None] = [None] * len(shape.shape)
        ways = mesh.shape["fsdp"]
        divisible = [axis for axis, size in enumerate(shape.shape) if size % ways == 0]
        if ways > 1 and divisible and np.prod(shape.shape) * shape.dtype.itemsize >= _MIN_SHARDED_BYTES:
            spec[max(divisible, key=lambda axis: shape.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(leaf, shapes)


class ByteCounts(NamedTuple):
    """Bytes of one copy of a tree, bytes on each device, and the fraction of the former that is replicated."""

    total: int
    per_device: int
    replicated: float


def byte_counts(tree: Any) -> ByteCounts:
    """Count the bytes of a tree of arrays, or of shapes, each with its sharding."""
    total = per_device = whole = 0
    for leaf in jax.tree.leaves(tree):
        size = (
            np.dtype(leaf.dtype).itemsize if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) else 8
        )
        total += leaf.size * size
        per_device += math.prod(leaf.sharding.shard_shape(leaf.shape)) * size
        if leaf.sharding.is_fully_replicated and leaf.sharding.mesh.size > 1:
            whole += leaf.size * size
    return ByteCounts(total, per_device, whole / max(1, total))


def shard_array(array: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """Put a host array, equal in every process, on the devices with the sharding of `state_sharding`.

    Without a mesh it goes to the default device.
    """
    if mesh is None:
        return jax.device_put(array)
    shape = jax.ShapeDtypeStruct(array.shape, array.dtype)
    return jax.make_array_from_callback(array.shape, state_sharding(shape, mesh), lambda index: array[index])


@lru_cache(maxsize=32)
def local_batch_indices(mesh: Mesh, size: int) -> np.ndarray:
    """Return the indices into a global batch of `size` of the examples on this process's devices: sorted, read-only.

    They need not be contiguous: a mesh on a TPU slice follows the slice's links, not the processes. Processes whose
    devices split the rows of the same images have the same indices.
    """
    blocks = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    indices = np.unique(np.concatenate([np.arange(size)[block] for block in blocks]))
    indices.setflags(write=False)  # the cache returns the same array at every step
    return indices


def shard_batch(batch: Any, mesh: Mesh, size: int | None = None) -> Any:
    """Assemble global arrays [size, ...], split over the devices of `mesh`, from each process's part of a batch.

    Args:
      batch: a tree of host arrays [b, ...]: the examples of this process's `local_batch_indices`, in order.
      mesh: the device mesh.
      size: of the global batch; None where each process holds all of it.

    Raises:
      ValueError: the devices do not divide the batch.
    """
    _check_size(1 if size is None else size, mesh)
    sharding = batch_sharding(mesh)

    def leaf(local: np.ndarray) -> jax.Array:
        _check_rows(local)
        if jax.dtypes.issubdtype(getattr(local, "dtype", None), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(leaf(jax.random.key_data(local)), impl=jax.random.key_impl(local))
        total = len(local) if size is None else size
        _check_divides(total, mesh)
        indices, local = local_batch_indices(mesh, total), np.asarray(local)

        def block(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(total)
            first = np.searchsorted(indices, start)  # a device's examples are contiguous, also in `local`
            return local[first : first + stop - start]

        return jax.make_array_from_callback((total, *local.shape[1:]), sharding, block)

    return jax.tree.map(leaf, batch)


def _check_rows(leaf: Any) -> None:
    if not isinstance(leaf, jax.Array | np.ndarray) or 0 in (leaf.ndim, *leaf.shape[:1]):
        raise ValueError(f"a batch must hold arrays [B, ...]; got {type(leaf).__name__}.")


def _check_size(size: int, mesh: Mesh) -> None:
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh must be a mesh, as from make_mesh; got {type(mesh).__name__}.")
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or not 1 <= size < 2**31:
        raise ValueError(f"size must be a whole number from 1 to 2147483647; got {str(size):.40}.")


def _check_divides(size: int, mesh: Mesh) -> None:
    ways = num_batch_shards(mesh)
    if size % ways:
        raise ValueError(f"a batch must divide evenly over {ways} devices; got {size} rows: pad it.")


def any_process(value: bool, mesh: Mesh) -> jax.Array:
    """Return an array that tells whether `value` is True in any process. Every process calls it.

    It does not block: the array is ready once the devices have done all earlier work.
    """
    local = jax.make_array_from_callback(
        (mesh.size,), _one_per_device(mesh), lambda index: np.full(1, value, np.int32)
    )
    return _max_over_devices(mesh)(local)


def _one_per_device(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(_AXES))


@lru_cache(maxsize=8)
def _max_over_devices(mesh: Mesh) -> Any:
    return jax.jit(jnp.max, in_shardings=_one_per_device(mesh), out_shardings=replicated(mesh))


def constrain_batch(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Inside jit: constrain `axis` of every leaf to be split over "data" and "fsdp"."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))
    return jax.lax.with_sharding_constraint(batch, sharding)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Put a full copy of every leaf on every device."""
    return jax.device_put(tree, replicated(mesh))


def shard_params(tree: Any, mesh: Mesh) -> Any:
    """Put a tree of parameters (or stages) on the mesh with the sharding of `state_sharding`."""
    return jax.device_put(tree, state_sharding(tree, mesh))


def sampling_shardings(stages: Any, mesh: Mesh) -> tuple[Any, NamedSharding, NamedSharding]:
    """Return the shardings of (stages, text, keys): parameters as in `shard_params`, the others split by example."""
    return state_sharding(stages, mesh), batch_sharding(mesh), batch_sharding(mesh)


def use_mesh(mesh: Mesh) -> Any:
    """Return a context in which traced functions constrain their images to `mesh`."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain_images(images: jax.Array) -> jax.Array:
    """Inside jit: constrain images [B, H, W, C] to B split over "data" and "fsdp", and H over "height".

    The mesh is that of `use_mesh` or `jax.set_mesh`; without one nothing is constrained.

    Raises:
      ValueError: H is not divisible by the size of "height".
    """
    ways = jax.sharding.get_abstract_mesh().shape.get("height", 1)
    if images.shape[1] % ways:
        raise ValueError(
            f"height must divide the rows of every stage's image, {images.shape[1]}; got {ways}."
        )
    return constrain_activations(images)


def constrain_activations(h: jax.Array) -> jax.Array:
    """Inside jit: constrain feature maps [B, H, W, C] as `constrain_images` does; axes that do not divide stay whole.

    Without this the compiler may propagate the parameters' sharding instead of the batch's. Kernels are not
    constrained: gathering them explicitly adds half again to the 2B base's exchanged bytes, and 3 GiB to each chip.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "height" not in mesh.shape:
        return h
    batch = ("data", "fsdp") if h.shape[0] % num_batch_shards(mesh) == 0 else None
    rows = "height" if h.shape[1] % mesh.shape["height"] == 0 else None
    return jax.lax.with_sharding_constraint(h, PartitionSpec(batch, rows))


def gather_kernel_if_height_sharded(kernel: jax.Array) -> jax.Array:
    """Inside jit: gather a convolution's kernel on every device if the mesh splits the rows of images.

    XLA's partitioner (jax 0.10.2) can compute wrong sums when a kernel's input channels are split over "fsdp", and
    images by example over the same axis and by rows over another. Seen with up to four rows a device: with one at 8
    channels, with four at 64.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("height", 1) == 1:
        return kernel
    return jax.lax.with_sharding_constraint(kernel, PartitionSpec())


def pad_batch(tree: Any, size: int, mesh: Mesh) -> Any:
    """Pad the leaves [B, ...] of `tree` to [size, ...] with `pad_rows`, and split them over the mesh.

    Args:
      tree: arrays [B, ...] with B <= size.
      size: a multiple of `num_batch_shards(mesh)`.
      mesh: the device mesh.

    Raises:
      ValueError: `size` is smaller than B, or no such multiple.
    """
    _check_size(size, mesh)
    _check_divides(size, mesh)

    def leaf(rows: jax.Array) -> jax.Array:
        _check_rows(rows)
        if len(rows) > size:
            raise ValueError(f"size must be at least the number of rows, {len(rows)}; got {size}.")
        return jax.device_put(pad_rows(rows, size), batch_sharding(mesh))

    return jax.tree.map(leaf, tree)


def pad_rows(rows: jax.Array, size: int) -> jax.Array:
    """Repeat the last entry of an array [B, ...] up to [size, ...]."""
    missing = size - len(rows)
    return jnp.concatenate([rows, jnp.repeat(rows[-1:], missing, axis=0)]) if missing else rows
