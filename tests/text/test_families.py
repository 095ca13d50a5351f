"""Every layout of text encoder, on random checkpoints, against torch."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from imagen_jax import sharding
from imagen_jax.text import weights

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
LAYOUTS = (
    "tiny_bert",
    "tiny_t5",  # ReLU
    "tiny_t5_v1_1",  # gated GELU
    "tiny_umt5",  # a position bias in each layer
    "tiny_byt5",  # on bytes
    "tiny_clip",  # the text half alone, quick GELU
    "tiny_open_clip",  # the whole model, GELU
)


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request):
    """(directory, apply(ids, mask), golden)"""
    directory = GOLDENS / request.param
    module, params = weights.load_model(directory, jnp.float32)
    compiled = jax.jit(module.apply)
    return directory, lambda ids, mask: compiled(params, ids, mask), load_file(f"{directory}.safetensors")


def test_matches_torch(layout):
    _, apply, golden = layout
    mask = golden["attention_mask"].astype(bool)
    hidden = apply(golden["input_ids"], golden["attention_mask"])
    assert hidden.shape == (*mask.shape, 32) and hidden.dtype == jnp.float32
    np.testing.assert_allclose(hidden[mask], golden["hidden"], rtol=0, atol=1e-5)


def test_bfloat16_is_near_float32(layout):
    directory, _, golden = layout
    module, params = weights.load_model(directory, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    mask = golden["attention_mask"].astype(bool)
    hidden = jax.jit(module.apply)(params, golden["input_ids"], golden["attention_mask"])
    assert hidden.dtype == jnp.bfloat16
    error = np.asarray(hidden[mask], np.float32) - golden["hidden"]
    assert np.linalg.norm(error) < 0.02 * np.linalg.norm(golden["hidden"])


def test_int8_weights_are_near_float32(layout):
    directory, _, golden = layout
    module, params = weights.load_model(directory, jnp.float32, jnp.int8)
    # Matrices are int8, what else there is float32: a quarter of the bytes and a scale for each output.
    sizes = {jnp.dtype(jnp.int8): 0, jnp.dtype(jnp.float32): 0}
    for leaf in jax.tree.leaves(params):
        sizes[leaf.dtype] += leaf.size
    assert sizes[jnp.dtype(jnp.int8)] > 8 * sizes[jnp.dtype(jnp.float32)]
    mask = golden["attention_mask"].astype(bool)
    hidden = jax.jit(module.apply)(params, golden["input_ids"], golden["attention_mask"])
    error = np.asarray(hidden[mask]) - golden["hidden"]
    assert 0 < np.linalg.norm(error) < 0.03 * np.linalg.norm(golden["hidden"])


def test_eight_devices_encode_as_one(layout, monkeypatch):
    directory, apply, golden = layout
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 512)
    mesh = sharding.make_mesh(fsdp=4)
    module, params = weights.load_model(directory, jnp.float32, mesh=mesh)
    # Born sharded: no device has more than about a quarter.
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params))
    assert held < 0.35 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    ids, mask = (np.concatenate([golden[name]] * 2) for name in ("input_ids", "attention_mask"))
    sharded = jax.jit(module.apply)(params, *sharding.shard_batch((ids, mask), mesh))
    np.testing.assert_allclose(sharded, apply(ids, mask), rtol=0, atol=1e-5)


def test_padding_is_masked_exactly(layout):
    _, apply, golden = layout
    ids, mask = golden["input_ids"], golden["attention_mask"]
    one, other = apply(ids, mask), apply(np.where(mask, ids, 7), mask)
    np.testing.assert_array_equal(one[mask != 0], other[mask != 0])
    assert np.abs(one[mask == 0] - other[mask == 0]).max() > 0.1


def test_padding_never_changes_tokens(layout):
    _, apply, golden = layout
    ids, mask = golden["input_ids"], golden["attention_mask"]
    padded = apply(ids, mask)
    np.testing.assert_allclose(padded[2:3, :7], apply(ids[2:3, :7], mask[2:3, :7]), rtol=0, atol=1e-5)


def test_a_row_without_tokens_is_finite(layout):
    _, apply, golden = layout
    ids = golden["input_ids"]
    assert np.isfinite(apply(ids, np.zeros_like(ids))).all()
