"""Checksums find every change, and do not depend on how an array lies on devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import sharding
from imagen_jax.config import StageConfig
from imagen_jax.stage_dir import checkpoint, checksums
from imagen_jax.structs import TrainState

SHAPES = [(), (7,), (0, 3), (2, 1, 3, 5)]
DTYPES = ["float32", "bfloat16", "int32", "int8", "bool", "complex64", "float8_e4m3fn"]


def array(shape, dtype, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) * 9).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_host_and_devices_agree(dtype):
    for shape in SHAPES:
        x = array(shape, dtype)
        assert int(checksums._on_devices(x)) == int(checksums._on_host(np.asarray(x))), shape


def test_the_sum_is_what_its_description_says():
    def mixed(bits, index):
        """MurmurHash3's fmix32, in whole numbers without a limit."""
        found = (int(bits) + index * 0x9E3779B9) % 2**32
        found = (found ^ found >> 16) * 0x85EBCA6B % 2**32
        found = (found ^ found >> 13) * 0xC2B2AE35 % 2**32
        return found ^ found >> 16

    x = np.array([1.5, -0.0, np.nan, 1e-42], np.float32)
    expected = sum(mixed(bits, index) for index, bits in enumerate(x.view(np.uint32))) % 2**32
    assert checksums.of_arrays({"a": jnp.asarray(x)}) == {"a": expected}


@pytest.mark.parametrize(
    "spec", [("data", None), (None, "data"), ("data", "fsdp"), (("data", "fsdp"), None), (None, None)]
)
def test_any_split_has_the_same_checksum(monkeypatch, spec):
    monkeypatch.setattr(checksums, "_SMALL_BYTES", 0)
    x = array((16, 8), "float32")
    mesh = sharding.make_mesh(2)
    split = jax.device_put(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))
    assert checksums.of_arrays([split]) == {"0": int(checksums._on_host(np.asarray(x)))}


ARRAYS = {
    "NumPy": np.arange(5.0),
    "NumPy, column by column": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "random keys": jax.random.split(jax.random.key(3), 2),
}


def test_arrays_that_are_not_jax_numbers_are_saved_verified_and_restored(tmp_path):
    state = TrainState(jnp.int32(1), {"a": jnp.ones(3)}, {"a": jnp.ones(3)}, ARRAYS)
    for _ in range(2):  # saves, then verifies
        with checkpoint.Checkpoints(tmp_path, StageConfig()) as checkpoints:
            if checkpoints.latest_step is None:
                checkpoints.save(state, {"next_index": 1})
            else:
                found = checkpoints.restore(state)[0].opt_state
    for name, x in ARRAYS.items():
        assert checksums.of_arrays([found[name]]) == checksums.of_arrays([x]), name
        assert checksums.of_arrays([x]) != checksums.of_arrays([x[::-1]]), name


def flipped(x, bit):
    found = np.array(x)
    found.reshape(-1).view(np.uint8)[bit // 8] ^= 1 << bit % 8
    return found


def with_bits(x, bits, where):
    found = x.copy()
    found.view(np.uint32)[where] ^= np.uint32(bits)
    return found


CHANGES = {
    "swapped neighbours": lambda x: np.concatenate([x[1::-1], x[2:]]),
    "swapped, a power of two apart": lambda x: np.concatenate([x[64:65], x[1:64], x[:1], x[65:]]),
    "halves exchanged": lambda x: np.roll(x, len(x) // 2),
    "reversed": lambda x: x[::-1].copy(),
    "zeros at the end": lambda x: np.where(np.arange(len(x)) < 100, x, np.float32(0)),
    "a sign": lambda x: np.where(np.arange(len(x)) == 9, -x, x),
    "two signs": lambda x: np.where(np.arange(len(x)) // 2 == 9, -x, x),
    "every sign": lambda x: -x,
    "the highest bits of two exponents": lambda x: with_bits(x, 1 << 30, slice(20, 22)),
    "a bit of every element": lambda x: with_bits(x, 1 << 29, slice(None)),
    "the two highest bits of four elements": lambda x: with_bits(x, 3 << 30, slice(40, 44)),
    "a column's signs": lambda x: np.where(np.arange(len(x)) % 16 == 3, -x, x),
    "zero for minus zero": lambda x: np.where(x == 0, np.float32(0), x),
    "one more": lambda x: x + np.float32(1),
    "all equal": lambda x: np.full_like(x, x[0]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_found(change):
    x = np.arange(128, dtype=np.float32) - 5  # many low bits are 0, as of round numbers
    x[5] = -0.0
    assert checksums._on_host(change(x)) != checksums._on_host(x)


def test_every_single_bit_is_found():
    for dtype in ("float32", "bfloat16", "int8"):
        x = np.asarray(array((5,), dtype))
        sums = {int(checksums._on_host(flipped(x, bit))) for bit in range(8 * x.nbytes)}
        assert int(checksums._on_host(x)) not in sums


def test_json_is_compared_by_its_content():
    assert checksums.of_json({"a": 1, "b": [2]}) == checksums.of_json({"b": [2], "a": 1})
    for other in ({"a": 1, "b": [3]}, {"a": 1}, {"a": 1.5, "b": [2]}, {"a": "1", "b": [2]}, [1], None):
        assert checksums.of_json(other) != checksums.of_json({"a": 1, "b": [2]})
