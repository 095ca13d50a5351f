import dataclasses
import json
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from imagen_jax.text import bert, pretrained

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
TINY = json.loads((GOLDENS / "tiny_bert" / "config.json").read_text())
SIZES = {
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
}


@pytest.fixture(scope="module")
def tiny():
    return pretrained.load_model(GOLDENS / "tiny_bert", jnp.float32)


@pytest.fixture(scope="module")
def apply(tiny):
    module, params = tiny
    compiled = jax.jit(module.apply)
    return lambda ids, mask: compiled(params, ids, mask)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDENS / "tiny_bert.safetensors")


def test_matches_torch(apply, golden):
    mask = golden["attention_mask"].astype(bool)
    hidden = apply(golden["input_ids"], golden["attention_mask"])
    assert hidden.shape == (*mask.shape, 32) and hidden.dtype == jnp.float32
    np.testing.assert_allclose(hidden[mask], golden["hidden"], rtol=0, atol=1e-5)


def test_bfloat16_is_near_float32(golden):
    module, params = pretrained.load_model(GOLDENS / "tiny_bert", jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    mask = golden["attention_mask"].astype(bool)
    hidden = jax.jit(module.apply)(params, golden["input_ids"], golden["attention_mask"])
    assert hidden.dtype == jnp.bfloat16
    error = np.abs(np.asarray(hidden[mask], np.float32) - golden["hidden"])
    assert error.mean() < 0.02 * np.abs(golden["hidden"]).mean()


def test_padding_is_masked_exactly(apply, golden):
    ids, mask = golden["input_ids"], golden["attention_mask"]
    one = apply(ids, mask)
    other = apply(np.where(mask, ids, 7), mask)
    np.testing.assert_array_equal(one[mask != 0], other[mask != 0])
    assert np.abs(one[mask == 0] - other[mask == 0]).max() > 0.1


def test_padding_never_changes_tokens(apply, golden):
    ids, mask = golden["input_ids"], golden["attention_mask"]
    padded = apply(ids, mask)
    alone = apply(ids[2:3, :7], mask[2:3, :7])
    np.testing.assert_allclose(padded[2:3, :7], alone, rtol=0, atol=1e-5)


def test_a_row_without_tokens_is_finite(apply, golden):
    ids = golden["input_ids"]
    assert np.isfinite(apply(ids, np.zeros_like(ids))).all()


def test_too_many_tokens_are_refused(tiny):
    module, params = tiny
    ids = np.zeros((1, 49), np.int32)
    with pytest.raises(ValueError, match="at most 48 tokens.*got 49"):
        module.apply(params, ids, ids)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("position_embedding_type", "relative_key"),
        ("is_decoder", True),
        ("add_cross_attention", True),
        ("hidden_act", "swish"),
    ],
)
def test_unsupported_models_are_refused(key, value):
    with pytest.raises(ValueError, match=f"{key} must be .*got {value!r}"):
        bert.BertConfig.from_hf({**TINY, key: value})


def test_incomplete_and_impossible_configs_are_refused():
    with pytest.raises(ValueError, match="intermediate_size, which is missing"):
        bert.BertConfig.from_hf({k: v for k, v in TINY.items() if k != "intermediate_size"})
    with pytest.raises(ValueError, match="multiple of num_attention_heads, got 32 and 5"):
        bert.BertConfig.from_hf({**TINY, "num_attention_heads": 5})


def test_config_reads_what_the_file_says():
    config = bert.BertConfig.from_hf({**TINY, "layer_norm_eps": 1e-5})
    assert config.layer_norm_eps == 1e-5 and config.width == 32 and config.max_length == 48
    assert hash(config) == hash(dataclasses.replace(config))


@pytest.mark.parametrize(("name", "parameters"), [("base", 108_891_648), ("large", 334_092_288)])
def test_the_sizes_of_the_paper(name, parameters):
    # As published, less the pooler (D * D + D).
    size = SIZES[name]
    config = bert.BertConfig(
        vocab_size=30522,
        intermediate_size=4 * size["hidden_size"],
        max_position_embeddings=512,
        **size,
    )
    ids = jnp.zeros((1, 8), jnp.int32)
    module = bert.BertEncoder(config)
    shapes = jax.eval_shape(module.init, jax.random.key(0), ids, ids)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    paths = [path for _, path, _ in bert.tensor_table(config)]
    assert sorted(paths) == sorted(flax.traverse_util.flatten_dict(shapes))


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("bert.embeddings.LayerNorm.gamma", "embeddings.LayerNorm.weight"),
        ("bert.encoder.layer.0.output.LayerNorm.beta", "encoder.layer.0.output.LayerNorm.bias"),
        ("encoder.layer.0.output.dense.bias", "encoder.layer.0.output.dense.bias"),
        ("bert.pooler.dense.weight", None),
        ("pooler.dense.weight", None),
        ("bert.embeddings.position_ids", None),
        ("cls.predictions.bias", None),
    ],
)
def test_names_of_older_checkpoints(name, canonical):
    assert bert.canonical_name(name) == canonical
