"""Every layout of text encoder, on random checkpoints, against torch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from imagen_jax import sharding
from imagen_jax.text import families, weights
from tests.conftest import GOLDENS

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


NAN, INF = float("nan"), float("inf")
OTHERS = [
    ("tiny_bert", "model_type", "config.json: model_type must be one of", (None, [], {}, 5)),
    (
        "tiny_bert",
        "layer_norm_eps",
        "layer_norm_eps must be a number",
        ("1", None, -1, 2, [], NAN, INF, True),
    ),
    ("tiny_bert", "hidden_act", "hidden_act must be 'gelu'", (None, ["gelu"], {}, 1, "a" * 3000)),
    ("tiny_bert", "is_decoder", "is_decoder must be False", ("no", [1], None)),
    ("tiny_t5", "feed_forward_proj", "feed_forward_proj must be", ([], {}, None, 5, "glu")),
    ("tiny_t5", "layer_norm_epsilon", "layer_norm_epsilon must be a number", ("x", {}, 10**400)),
    ("tiny_clip", "hidden_act", "hidden_act must be", ([], None, 5, "swish")),
    ("tiny_open_clip", "text_config", "text_config must be an object", ([1], "x", 5, True)),
]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [(name, {key: value}, message) for name, key, message, values in OTHERS for value in values],
)
def test_wrong_types_of_the_rest_are_one_line(name, config, message, tmp_path):
    whole = json.loads((GOLDENS / name / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=message) as error:
        families.read_config(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("config", [
    {"model_cfg": []}, {"model_cfg": {"text_cfg": 5}}, {"model_cfg": {"text_cfg": []}}, {"model_cfg": "x"}, {},
    {"model_cfg": {"text_cfg": {"vocab_size": 40, "width": "32", "layers": 2, "heads": 4, "context_length": 20}}},
    {"model_cfg": {"text_cfg": {"vocab_size": 40, "width": 32, "layers": 2, "heads": 4, "context_length": 20,
                                "mlp_ratio": "4"}}},
    {"model_cfg": {"text_cfg": {"vocab_size": 40, "width": 32, "layers": 2, "heads": 4, "context_length": 20,
                                "mlp_ratio": 1e300}}},
])  # fmt: skip
def test_wrong_types_in_a_config_of_open_clip_are_one_line(config, tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="open_clip") as error:
        families.read_config(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
