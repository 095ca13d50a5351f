"""Checksums of arrays, which detect checkpoints that have changed on the disk.

The checksum of an array is the sum, modulo 2^32, of its elements' bits, each mixed with the element's index. A sum does
not depend on its order, so the checksum does not depend on the sharding: each device sums its shard, and a checkpoint
can be verified on other devices than it was written from. No file is read twice, and no large array is copied to the
host. A change of one element is always detected, since mixing is one to one; any other change is missed with
probability 2^-32.
"""

import json
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_SMALL_BYTES = 2**20


def of_arrays(tree: Any) -> dict[str, int]:
    """Return the checksum of each array by its path, such as "ema_params/conv/kernel".

    Every process of a run calls it.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): _numbers(leaf)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
    found = {name: _on_devices(leaf) for name, leaf in leaves.items() if not _is_small(leaf)}
    small = jax.device_get({name: leaf for name, leaf in leaves.items() if name not in found})
    found = jax.device_get(found) | {name: _on_host(leaf) for name, leaf in small.items()}
    return {name: int(found[name]) for name in leaves}


def of_json(content: Any) -> int:
    """Return the checksum of a JSON value, independent of the order of its keys."""
    return zlib.crc32(json.dumps(content, sort_keys=True, allow_nan=False).encode())


def _numbers(x: Any) -> Any:
    """Return the data of random keys, and other arrays unchanged."""
    is_key = isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


def _is_small(x: Any) -> bool:
    """Whether an array is on the host, or so small that fetching it is cheaper than compiling for its shape."""
    return not isinstance(x, jax.Array) or (x.nbytes < _SMALL_BYTES and x.is_fully_replicated)


def _on_host(x: np.ndarray) -> np.uint32:
    x = np.ascontiguousarray(x).reshape(-1)
    width = x.dtype.itemsize
    bits = x.view(f"u{min(width, 4)}").astype(np.uint32)
    return np.sum(_mixed(bits, np.arange(len(bits), dtype=np.uint32)), dtype=np.uint32)


@jax.jit
def _on_devices(x: jax.Array) -> jax.Array:
    x = jnp.atleast_1d(x)
    if jnp.iscomplexobj(x):
        x = jnp.stack([x.real, x.imag], axis=-1)  # in their order in memory
    kind = {1: jnp.uint8, 2: jnp.uint16}.get(x.dtype.itemsize, jnp.uint32)  # 8 bytes become a last axis of 2
    bits = x if x.dtype == bool else jax.lax.bitcast_convert_type(x, kind)
    strides = np.cumprod((1, *bits.shape[:0:-1]), dtype=np.uint64)[::-1] % 2**32
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, stride in enumerate(strides):
        index += jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride)
    return jnp.sum(_mixed(bits.astype(jnp.uint32), index), dtype=jnp.uint32)


def _mixed(bits: Any, index: Any) -> Any:
    """Hash each element's bits and index to a uint32, one to one in the bits, by the finalizer of MurmurHash3.

    A product with a factor for each index would not do: pairs of flipped highest bits cancel in the sum, as in a
    negated array.
    """
    mixed = bits + index * np.uint32(0x9E3779B9)  # 2^32 divided by the golden ratio spreads neighbouring indices
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    return mixed
