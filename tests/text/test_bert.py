import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.text import bert, weights
from tests.conftest import GOLDENS

TINY = json.loads((GOLDENS / "tiny_bert" / "config.json").read_text())


@pytest.fixture(scope="module")
def tiny():
    return weights.load_model(GOLDENS / "tiny_bert", jnp.float32)


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
    with pytest.raises(ValueError, match="multiple of num_attention_heads; got 32 and 5"):
        bert.BertConfig.from_hf({**TINY, "num_attention_heads": 5})


def test_config_reads_what_the_file_says():
    config = bert.BertConfig.from_hf({**TINY, "layer_norm_eps": 1e-5})
    assert config.layer_norm_eps == 1e-5 and config.width == 32 and config.max_length == 48
    assert hash(config) == hash(dataclasses.replace(config))


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
