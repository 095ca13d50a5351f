"""Sizes in a config.json: of the right type, and no larger than the weights."""

import json

import jax.numpy as jnp
import pytest

from imagen_jax.text import families, weights
from tests.conftest import GOLDENS

# --- sizes that do not fit, and files that are none ---------------------------------------------

BOUNDED = [
    ("tiny_bert", {"num_hidden_layers": 10**9}, "lack the tensor encoder.layer.2.*10000 or more"),
    ("tiny_bert", {"num_hidden_layers": 3}, "lack the tensor encoder.layer.2"),
    ("tiny_bert", {"num_hidden_layers": 1}, "which such a model does not have"),
    ("tiny_bert", {"vocab_size": 10**9}, "vocab_size of the config must fit the weights, whose longest axis has 64"),
    ("tiny_bert", {"vocab_size": 10**12}, "vocab_size must be a positive integer below 2"),
    ("tiny_bert", {"vocab_size": 22}, "must have shape .22, 32. as config.json says; got .21, 32."),
    ("tiny_bert", {"hidden_size": 64}, "must have shape"),
    ("tiny_bert", {"hidden_size": 2**30}, "hidden_size of the config must fit the weights"),
    ("tiny_bert", {"intermediate_size": 10**8}, "intermediate_size of the config must fit the weights"),
    ("tiny_bert", {"max_position_embeddings": 10**9}, "max_position_embeddings of the config must fit"),
    ("tiny_bert", {"type_vocab_size": 10**9}, "type_vocab_size of the config must fit"),
    ("tiny_bert", {"num_attention_heads": 10**9}, "hidden_size must be a multiple of num_attention_heads"),
    ("tiny_t5", {"num_layers": 10**9}, "lack the tensor encoder.block.2.*10000 or more"),
    ("tiny_umt5", {"num_layers": 10**9}, "lack the tensor encoder.block.2"),
    ("tiny_t5", {"vocab_size": 10**12}, "vocab_size must be a positive integer below 2"),
    ("tiny_t5", {"d_kv": 10**9}, "d_kv of the config must fit the weights"),
    ("tiny_t5", {"d_ff": 10**9}, "d_ff of the config must fit the weights"),
    ("tiny_t5", {"num_heads": 10**9}, "num_heads of the config must fit the weights"),
    ("tiny_t5", {"relative_attention_num_buckets": 10**9 * 2}, "max_distance must be more than a quarter"),
    ("tiny_t5", {"relative_attention_max_distance": 10**400}, "max_distance must be a positive integer below 2"),
    ("tiny_byt5", {"num_layers": 10**9}, "lack the tensor encoder.block.1"),
    ("tiny_clip", {"num_hidden_layers": 10**9}, "lack the tensor text_model.encoder.layers.2"),
    ("tiny_clip", {"vocab_size": 2**31 - 1}, "vocab_size of the config must fit the weights"),
    ("tiny_clip", {"max_position_embeddings": 10**9}, "max_position_embeddings of the config must fit"),
    ("tiny_clip", {"eos_token_id": 2**63}, "eos_token_id must be a positive integer below 2"),
    ("tiny_open_clip", {"text_config": {"num_hidden_layers": 10**9}}, "lack the tensor|must fit the weights"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "message"), BOUNDED)
def test_sizes_are_bounded_by_the_weights(name, config, message, model, monkeypatch):
    directory = model(name, **config)
    if "must have shape" not in message and "does not have" not in message:  # small enough to be built
        monkeypatch.setattr(weights, "_shapes", lambda *_: pytest.fail("a network was built"))
    with pytest.raises(ValueError, match=message) as error:
        weights.locate(directory, families.make_module(directory, jnp.float32))
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


WRONG = [None, [], {}, "64", "", True, 0, -1, 2.5, 1e300, float("nan"), 10**400]
FIELDS = [
    ("tiny_bert", ("vocab_size", "num_hidden_layers", "num_attention_heads", "type_vocab_size")),
    (
        "tiny_t5",
        ("d_model", "num_layers", "relative_attention_num_buckets", "relative_attention_max_distance"),
    ),
    ("tiny_clip", ("hidden_size", "num_hidden_layers", "eos_token_id")),
]


@pytest.mark.parametrize(("name", "fields"), FIELDS)
def test_wrong_types_of_sizes_are_one_line(name, fields, tmp_path):
    config = json.loads((GOLDENS / name / "config.json").read_text())
    for field in fields:
        for value in WRONG:
            (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
            with pytest.raises(ValueError, match=f"config.json: {field} must be a positive integer") as error:
                families.read_config(tmp_path)
            assert str(tmp_path) in str(error.value) and len(str(error.value)) < 400
