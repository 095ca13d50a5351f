"""The mesh of devices, and how states, batches and large images lie on it. The only file that names a mesh."""

import math
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

# Smaller leaves than this are not worth the collectives that sharding them costs.
_MIN_SHARDED_BYTES = 2**20
_AXES = ("data", "fsdp", "height")


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None, *, height: int = 1) -> Mesh:
    """A (data, fsdp, height) mesh over all devices.

    Args:
      fsdp: devices that share each copy of the parameters.
      devices: all unless given.
      height: devices that share the rows of each image, inside `jax.set_mesh(mesh)`.
    """
    devices = jax.devices() if devices is None else devices
    _check_ways(len(devices), fsdp, height)
    shape = (len(devices) // (fsdp * height), fsdp, height)
    return jax.make_mesh(shape, _AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def abstract_mesh(num_devices: int, fsdp: int = 1, *, height: int = 1) -> AbstractMesh:
    """The mesh that `make_mesh` would make of so many devices, without them."""
    _check_ways(num_devices, fsdp, height)
    return AbstractMesh(
        (num_devices // (fsdp * height), fsdp, height), _AXES, axis_types=(AxisType.Auto,) * 3
    )


def _check_ways(num_devices: int, fsdp: int, height: int) -> None:
    for name, ways in {"run.fsdp": fsdp, "run.height": height, "run.fsdp x run.height": fsdp * height}.items():
        if isinstance(ways, bool) or not isinstance(ways, int | np.integer) or ways < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {ways!r}.")
        if num_devices % ways:
            raise ValueError(f"{name} must divide the number of devices {num_devices}; got {ways}.")


def batch_ways(mesh: Mesh) -> int:
    """The number of parts that a batch is split into."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Every device gets the same number of images in every part of a batch."""
    ways = batch_ways(mesh)
    parts = ways * accumulation
    if batch_size % parts:
        raise ValueError(
            f"optim.batch_size must be divisible by devices x optim.accumulation = {ways} x {accumulation}; "
            f"got {batch_size}: use {max(1, round(batch_size / parts)) * parts}."
        )


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(shapes: Any, mesh: Mesh) -> Any:
    """Shardings for a state's shapes: the largest divisible axis of each large leaf over "fsdp"."""

    def leaf(shape: jax.ShapeDtypeStruct) -> NamedSharding:
        spec: list[str | None] = [None] * len(shape.shape)
        ways = mesh.shape["fsdp"]
        divisible = [axis for axis, size in enumerate(shape.shape) if size % ways == 0]
        if ways > 1 and divisible and np.prod(shape.shape) * shape.dtype.itemsize >= _MIN_SHARDED_BYTES:
            spec[max(divisible, key=lambda axis: shape.shape[axis])] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(leaf, shapes)


def shares(abstract: Any) -> "Shares":
    """How the bytes of a tree of arrays (or their shapes), each with its sharding, lie on the devices."""
    total = per_device = whole = 0
    for leaf in jax.tree.leaves(abstract):
        size = (
            np.dtype(leaf.dtype).itemsize if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) else 8
        )
        total += leaf.size * size
        per_device += math.prod(leaf.sharding.shard_shape(leaf.shape)) * size
        if leaf.sharding.is_fully_replicated and leaf.sharding.mesh.size > 1:
            whole += leaf.size * size
    return Shares(total, per_device, whole / max(1, total))


class Shares(NamedTuple):
    """Bytes of a tree: of one copy, on each device, and the share of the first that lies whole on each device."""

    total: int
    per_device: int
    replicated: float


def place(array: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """A whole host array, the same in every process, laid on the mesh as a state's leaf is.

    None: on the default device.
    """
    if mesh is None:
        return jax.device_put(array)
    shape = jax.ShapeDtypeStruct(array.shape, array.dtype)
    return jax.make_array_from_callback(array.shape, state_sharding(shape, mesh), lambda index: array[index])


@lru_cache(maxsize=32)
def local_rows(mesh: Mesh, size: int) -> np.ndarray:
    """The rows of a global batch of `size` that lie on this process's devices, in order; not to be written to.

    They need not be neighbours: a mesh on a TPU slice follows the slice's links, not the processes. Processes whose
    devices share the rows of an image have the same ones.
    """
    blocks = batch_sharding(mesh).addressable_devices_indices_map((size,)).values()
    rows = np.unique(np.concatenate([np.arange(size)[index] for index in blocks]))
    rows.setflags(write=False)  # the same array is handed out at every step
    return rows


def shard_batch(batch: Any, mesh: Mesh, size: int | None = None) -> Any:
    """This process's `local_rows` of a global batch of `size` (None: all of it) as global arrays [size, ...], the rows
    split over all devices of `mesh`."""
    sharding = batch_sharding(mesh)

    def leaf(local: np.ndarray) -> jax.Array:
        total = len(local) if size is None else size
        rows, local = local_rows(mesh, total), np.asarray(local)

        def block(index: tuple[slice, ...]) -> np.ndarray:
            start, stop, _ = index[0].indices(total)
            first = np.searchsorted(rows, start)  # a device's rows are neighbours, also among this process's
            return local[first : first + stop - start]

        return jax.make_array_from_callback((total, *local.shape[1:]), sharding, block)

    return jax.tree.map(leaf, batch)


def flag_of_all(value: bool, mesh: Mesh) -> jax.Array:
    """Starts to find out whether `value` is True in any process; called by all of them. Read it later: it is there when
    all that the devices were given before is done."""
    mine = jax.make_array_from_callback(
        (mesh.size,), _one_each(mesh), lambda index: np.full(1, value, np.int32)
    )
    return _largest(mesh)(mine)


def _one_each(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(_AXES))


@lru_cache(maxsize=8)
def _largest(mesh: Mesh) -> Any:
    return jax.jit(jnp.max, in_shardings=_one_each(mesh), out_shardings=replicated(mesh))


def constrain_batch(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Inside jit: keeps `axis` of every leaf split over all devices."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))
    return jax.lax.with_sharding_constraint(batch, sharding)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A whole copy of every leaf on every device."""
    return jax.device_put(tree, replicated(mesh))


def shard_params(tree: Any, mesh: Mesh) -> Any:
    """A tree of parameters (or stages) on the mesh: large leaves over its "fsdp" devices, the rest whole on each."""
    return jax.device_put(tree, state_sharding(tree, mesh))


def sampling_shardings(stages: Any, mesh: Mesh) -> tuple[Any, NamedSharding, NamedSharding]:
    """Of (stages, text, keys): parameters as in `shard_params`, the rest split over the batch."""
    return state_sharding(stages, mesh), batch_sharding(mesh), batch_sharding(mesh)


def use_mesh(mesh: Mesh) -> Any:
    """A context in which functions that jit traces split their images over `mesh`."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def constrain_images(images: jax.Array) -> jax.Array:
    """Inside jit and a mesh: [B, H, W, C] with B over "data" and "fsdp", and H over "height".

    The mesh is that of `use_mesh` or `jax.set_mesh`; without one nothing is constrained.
    """
    ways = jax.sharding.get_abstract_mesh().shape.get("height", 1)
    if images.shape[1] % ways:
        raise ValueError(
            f"height must divide the rows of every stage's image, {images.shape[1]}; got {ways}."
        )
    return constrain_activations(images)


def constrain_activations(h: jax.Array) -> jax.Array:
    """`constrain_images` for what a network makes of them; an axis that does not divide stays whole.

    Left to itself, the compiler might follow the parameters' sharding instead of the batch's. (Kernels are left to it:
    forced to be gathered whole, they cost the 2B base half as many bytes of exchange again, and 3 GiB of each chip.)
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "height" not in mesh.shape:
        return h
    batch = ("data", "fsdp") if h.shape[0] % batch_ways(mesh) == 0 else None
    rows = "height" if h.shape[1] % mesh.shape["height"] == 0 else None
    return jax.lax.with_sharding_constraint(h, PartitionSpec(batch, rows))


def whole_with_split_rows(kernel: jax.Array) -> jax.Array:
    """A convolution's kernel, gathered whole where images are split by rows as well.

    XLA's partitioner (jax 0.10.2) can compute wrong sums from a kernel whose input channels are split over "fsdp" and
    images whose batch is split over the same axis, and rows over another. Seen at up to four rows a device: at one with
    8 channels, at four with 64.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("height", 1) == 1:
        return kernel
    return jax.lax.with_sharding_constraint(kernel, PartitionSpec())


def pad_batch(tree: Any, size: int, mesh: Mesh) -> Any:
    """The leaves [B, ...] of `tree` on the mesh as [size, ...], B <= size: the last row is repeated to fill up.

    Crop the result to the first B rows afterwards. `size` is a multiple of the number of devices.
    """

    def leaf(rows: jax.Array) -> jax.Array:
        return jax.device_put(padded(rows, size), batch_sharding(mesh))

    return jax.tree.map(leaf, tree)


def padded(rows: jax.Array, size: int) -> jax.Array:
    missing = size - len(rows)
    return jnp.concatenate([rows, jnp.repeat(rows[-1:], missing, axis=0)]) if missing else rows
