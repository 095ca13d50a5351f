"""Every tensor of a checkpoint finds its place, and what is not as it must be is named."""

import json
import subprocess
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.text import bert, families, weights
from imagen_jax.text.encoder import TextEncoder
from tests.conftest import GOLDENS
from tests.text.conftest import rewrite

LOAD = """
import resource, sys
import jax, jax.numpy as jnp
from pathlib import Path
from imagen_jax.text import families, model_files, pretrained, weights
small, directory = map(Path, sys.argv[1:])
weights.load_model(small, jnp.bfloat16)  # what any load takes: compilers, libraries
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
_, params = weights.load_model(directory, jnp.bfloat16)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - before) * 1024, sum(leaf.nbytes for leaf in jax.tree.leaves(params)))
"""


@pytest.mark.slow
def test_loading_holds_one_tensor_at_a_time(tmp_path):
    config = json.loads((GOLDENS / "tiny_bert" / "config.json").read_text())
    config |= {"vocab_size": 4000, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    module = families.make_module(tmp_path, jnp.float32)
    shapes, where, size, largest = weights._shapes(module), {}, 0, 0
    rows = list(bert.tensor_table(module.config))
    for i in range(2):
        rng, shard = np.random.default_rng(i), f"model-{i}.safetensors"
        tensors = {
            name: rng.standard_normal(shapes[path].shape[:: -1 if transposed else 1], np.float32)
            for name, path, transposed in rows[i::2]
        }
        size += sum(tensor.nbytes for tensor in tensors.values())
        largest = max(largest, *(tensor.nbytes for tensor in tensors.values()))
        save_file(tensors, tmp_path / shard)
        where |= dict.fromkeys(tensors, shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    run = subprocess.run(
        [sys.executable, "-c", LOAD, str(GOLDENS / "tiny_bert"), str(tmp_path)],
        capture_output=True, text=True, check=True, cwd=GOLDENS.parents[1],
    )  # fmt: skip
    peak, parameters = map(int, run.stdout.split())
    assert size > 4e8 and parameters == size // 2  # bfloat16
    # On a CPU the parameters themselves lie in host memory too.
    assert peak - parameters < size / 4 + largest


def test_every_tensor_is_accounted_for(directory):
    name = "encoder.layer.1.attention.self.query.weight"
    original = (directory / "model.safetensors").read_bytes()

    def message(change):
        (directory / "model.safetensors").write_bytes(original)
        rewrite(directory, change)
        with pytest.raises(ValueError) as error:
            TextEncoder.from_pretrained(directory)
        return str(error.value)

    assert f"lack the tensor {name} (1 in all)" in message(
        lambda t: {k: v for k, v in t.items() if k != name}
    )
    surplus = message(lambda t: t.update(extra=t[name]))
    assert "got extra, which such a model does not have" in surplus
    misshapen = message(lambda t: t.update({name: np.zeros((32, 31), np.float32)}))
    assert f"{name} must have shape (32, 32) as config.json says; got (32, 31)" in misshapen
    assert "got it twice, with other values" in message(lambda t: t.update({f"bert.{name}": t[name] + 1}))


def test_heads_and_old_names_load(directory, tiny):
    def older(tensors):
        names = {
            k: "bert." + k.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta")
            for k in tensors
        }
        return {names[k]: v for k, v in tensors.items()} | {"cls.bias": np.zeros(3, np.float32)}

    rewrite(directory, older)
    loaded = TextEncoder.from_pretrained(directory).encode(["a red cat"]).embeddings
    np.testing.assert_array_equal(loaded, tiny.encode(["a red cat"]).embeddings)


def test_bfloat16_weights_load(directory):
    def to_bfloat16(tensors):
        return {k: v.astype(ml_dtypes.bfloat16) for k, v in tensors.items()}

    original = load_file(directory / "model.safetensors")
    rewrite(directory, to_bfloat16)
    _, params = weights.load_model(directory, jnp.float32)
    expected = original["encoder.layer.0.output.dense.weight"].T.astype(ml_dtypes.bfloat16)
    kernel = params["params"]["layer_0"]["mlp_out"]["kernel"]
    assert kernel.dtype == jnp.float32
    np.testing.assert_array_equal(kernel, expected.astype(np.float32))


def test_sharded_weights_load(directory, tiny):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    path.unlink()
    where = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(tensors)}
    for shard in set(where.values()):
        save_file({k: v for k, v in tensors.items() if where[k] == shard}, directory / shard)
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    loaded = TextEncoder.from_pretrained(directory)
    np.testing.assert_array_equal(loaded.encode(["dog"]).embeddings, tiny.encode(["dog"]).embeddings)
    (directory / "model-1.safetensors").unlink()
    with pytest.raises(ValueError, match="must name shards that exist; got model-1.safetensors"):
        TextEncoder.from_pretrained(directory)


def test_quantized_weights_and_odd_sizes_are_refused(directory):
    name = "encoder.layer.0.output.dense.weight"
    rewrite(directory, lambda tensors: tensors.update({name: tensors[name].astype(np.int8)}))
    with pytest.raises(ValueError, match=f"{name} must be F16, BF16, F32 or F64; got I8"):
        TextEncoder.from_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    for value in ("64", None, 0, 2.5):
        (directory / "config.json").write_text(json.dumps(config | {"hidden_size": value}))
        with pytest.raises(ValueError, match="BERT config.json: hidden_size must be a positive integer"):
            TextEncoder.from_pretrained(directory)


# --- names of a tied table ----------------------------------------------------------------------


def moved(*names, table="shared.weight"):
    """Takes the token table from its own name; it, or for (name, value) that value, goes under `names`."""

    def change(tensors):
        values = tensors.pop(table)
        for name in names:
            name, fill = name if isinstance(name, tuple) else (name, None)
            tensors[name] = values.copy() if fill is None else np.full_like(values, fill)
        return tensors

    return change


DECODER, HEAD = "decoder.embed_tokens.weight", "lm_head.weight"
BERT_TABLE, BERT_HEAD = "embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
CLIP_TABLE = "embeddings.token_embedding.weight"


@pytest.mark.parametrize(
    ("name", "change", "config", "loads"),
    [
        ("tiny_t5", moved(DECODER), {}, True),
        ("tiny_t5", moved(HEAD), {}, True),
        ("tiny_t5", moved(HEAD), {"tie_word_embeddings": True}, True),
        ("tiny_t5", moved(HEAD), {"tie_word_embeddings": None}, True),
        ("tiny_t5", moved("encoder.embed_tokens.weight"), {"tie_word_embeddings": False}, True),
        # Encoder and decoder share their table in v1.1 too; the head does not.
        ("tiny_t5_v1_1", moved(DECODER), {"tie_word_embeddings": False}, True),
        ("tiny_t5_v1_1", moved(DECODER, (HEAD, 7)), {"tie_word_embeddings": False}, True),
        ("tiny_t5_v1_1", moved(HEAD), {"tie_word_embeddings": False}, False),
        ("tiny_t5_v1_1", moved(HEAD), {"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ("tiny_umt5", moved(HEAD), {"tie_word_embeddings": False}, False),
        ("tiny_umt5", moved(DECODER), {"tie_word_embeddings": False}, True),
        ("tiny_byt5", moved(DECODER, (HEAD, 7)), {"tie_word_embeddings": False}, True),
        # Its own name comes first, whatever stands under the others.
        ("tiny_t5", moved("shared.weight", (HEAD, 7), (DECODER, 7)), {}, True),
        ("tiny_t5", moved(DECODER, (HEAD, 7)), {}, True),
        ("tiny_bert", moved(BERT_HEAD, table=BERT_TABLE), {}, True),
        ("tiny_bert", moved("bert." + BERT_TABLE, (BERT_HEAD, 7), table=BERT_TABLE), {}, True),
        ("tiny_bert", moved(BERT_HEAD, table=BERT_TABLE), {"tie_word_embeddings": False}, False),
        ("tiny_bert", moved(HEAD, table=BERT_TABLE), {}, False),
        ("tiny_clip", moved(HEAD, table=CLIP_TABLE), {}, False),
        ("tiny_clip", moved("text_model." + CLIP_TABLE, table=CLIP_TABLE), {}, True),
    ],
)
def test_where_the_token_table_may_be(name, change, config, loads, model):
    directory = model(name, change, **config)
    module = families.make_module(directory, jnp.float32)
    if not loads:
        with pytest.raises(
            ValueError, match="lack the tensor|which such a model does not have"
        ):
            weights.locate(directory, module)
        return
    located = {tensor.path: weights._read(tensor) for tensor in weights.locate(directory, module)}
    original = weights.locate(GOLDENS / name, families.make_module(GOLDENS / name, jnp.float32))
    assert len(located) == len(original)
    for tensor in original:
        np.testing.assert_array_equal(located[tensor.path], weights._read(tensor))


def test_a_tied_table_changes_no_fingerprint_and_no_embedding_but_by_its_weights(model):
    """What the head is tied to is no part of the encoder: caches stay valid."""
    tied, untied = model("tiny_t5", tie_word_embeddings=True), None
    first = families.make_module(tied, jnp.float32)
    untied = model("tiny_t5", tie_word_embeddings=False)
    second = families.make_module(untied, jnp.float32)
    assert first == second and hash(first) == hash(second) and repr(first.config) == repr(second.config)


# --- numbers that are none ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [
        ("embeddings.word_embeddings.weight", np.nan, "float32"),
        ("embeddings.word_embeddings.weight", np.inf, "int8"),
        ("embeddings.token_type_embeddings.weight", np.nan, "int8"),
        ("embeddings.LayerNorm.weight", np.nan, "bfloat16"),
        ("embeddings.LayerNorm.bias", -np.inf, "int8"),
        ("encoder.layer.0.attention.self.query.weight", np.inf, "float32"),
    ],
)
def test_weights_that_are_not_finite_are_refused(name, value, dtype, model):
    directory = model("tiny_bert", lambda tensors: tensors[name].reshape(-1).__setitem__(-1, value))
    encoder = TextEncoder.from_pretrained(directory, dtype)
    with pytest.raises(
        ValueError, match=f"model.safetensors: the tensor {name} must be finite as .*got NaN or inf"
    ):
        encoder.params  # noqa: B018


def test_float64_beyond_float32_is_refused(model):
    def huge(tensors):
        name = "encoder.layer.0.output.dense.bias"
        tensors[name] = np.full(tensors[name].shape, 1e300)

    with pytest.raises(ValueError, match="encoder.layer.0.output.dense.bias must be finite as float32"):
        TextEncoder.from_pretrained(model("tiny_bert", huge)).params  # noqa: B018
