"""Devices: the mesh, how state and batches lie on it. The only file that names a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Smaller leaves than this are not worth the collectives that sharding them costs.
_MIN_SHARDED_BYTES = 2**20


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp) mesh over all devices; `fsdp` of them share each copy of the parameters."""
    devices = jax.devices() if devices is None else devices
    if len(devices) % fsdp:
        raise ValueError(f"run.fsdp must divide the number of devices {len(devices)}; got {fsdp}.")
    return jax.make_mesh(
        (len(devices) // fsdp, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def check_batch(batch_size: int, accumulation: int, mesh: Mesh) -> None:
    """Every device gets the same number of images in every part of a batch."""
    parts = mesh.size * accumulation
    if batch_size % parts:
        raise ValueError(
            f"optim.batch_size must be divisible by devices x optim.accumulation = {mesh.size} x {accumulation}; "
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


def place(array: np.ndarray, mesh: Mesh | None) -> jax.Array:
    """A whole host array, the same in every process, laid on the mesh as a state's leaf is.

    None: on the default device.
    """
    if mesh is None:
        return jax.device_put(array)
    shape = jax.ShapeDtypeStruct(array.shape, array.dtype)
    return jax.make_array_from_callback(array.shape, state_sharding(shape, mesh), lambda index: array[index])


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """This process's rows of a global batch (numpy, [B / processes, ...]) -> global arrays [B, ...]."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)


def constrain_batch(batch: Any, mesh: Mesh, axis: int = 0) -> Any:
    """Inside jit: keeps `axis` of every leaf split over all devices."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * axis, ("data", "fsdp")))
    return jax.lax.with_sharding_constraint(batch, sharding)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A whole copy of every leaf on every device."""
    return jax.device_put(tree, replicated(mesh))


def pad_batch(tree: Any, size: int, mesh: Mesh) -> Any:
    """Leaves [B, ...] on the mesh as [size, ...], B <= size: the last row is repeated to fill up.

    Crop the result to the first B rows afterwards. `size` is a multiple of the number of devices.
    """

    def leaf(rows: jax.Array) -> jax.Array:
        missing = size - len(rows)
        rows = jnp.concatenate([rows, jnp.repeat(rows[-1:], missing, axis=0)]) if missing else rows
        return jax.device_put(rows, batch_sharding(mesh))

    return jax.tree.map(leaf, tree)
