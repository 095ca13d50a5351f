"""Published weights: what names hold a tensor, revisions, sizes that do not fit, damaged files."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.text import pretrained
from imagen_jax.text.encoder import TextEncoder

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.fixture
def model(tmp_path):
    """Copies a golden model; `change` is applied to its tensors, `config` to its config.json."""

    def copy(name, change=lambda tensors: None, **config):
        directory = shutil.copytree(GOLDENS / name, tmp_path / "model", dirs_exist_ok=True)
        tensors = load_file(directory / "model.safetensors")
        tensors = change(tensors) or tensors
        save_file(tensors, directory / "model.safetensors")
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return directory

    return copy


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
    module = pretrained.make_module(directory, jnp.float32)
    if not loads:
        with pytest.raises(
            ValueError, match="lack the tensor|which a model of this config.json does not have"
        ):
            pretrained.locate(directory, module)
        return
    located = {tensor.path: pretrained._read(tensor) for tensor in pretrained.locate(directory, module)}
    original = pretrained.locate(GOLDENS / name, pretrained.make_module(GOLDENS / name, jnp.float32))
    assert len(located) == len(original)
    for tensor in original:
        np.testing.assert_array_equal(located[tensor.path], pretrained._read(tensor))


def test_a_tied_table_changes_no_fingerprint_and_no_embedding_but_by_its_weights(model):
    """What the head is tied to is no part of the encoder: caches stay valid."""
    tied, untied = model("tiny_t5", tie_word_embeddings=True), None
    first = pretrained.make_module(tied, jnp.float32)
    untied = model("tiny_t5", tie_word_embeddings=False)
    second = pretrained.make_module(untied, jnp.float32)
    assert first == second and hash(first) == hash(second) and repr(first.config) == repr(second.config)


# --- revisions ----------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """The calls of a hub that has the tiny BERT under every name."""
    import huggingface_hub

    calls = []

    def fake(name, revision=None, allow_patterns=None, ignore_patterns=None):
        calls.append((name, revision))
        return str(GOLDENS / "tiny_bert")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return calls


@pytest.mark.parametrize(
    ("given", "name", "revision"),
    [
        ("some/model", "some/model", None),
        ("some/model@main", "some/model", "main"),
        ("some/model@refs/pr/2", "some/model", "refs/pr/2"),
        ("some/model@v1.0", "some/model", "v1.0"),
        ("model@" + "a" * 40, "model", "a" * 40),
        ("t5-v1_1-xxl@refs/pr/2", "google/t5-v1_1-xxl", "refs/pr/2"),
        ("google/t5-v1_1-xxl@main", "google/t5-v1_1-xxl", "main"),
        # Another revision than the one whose package and hash are known.
        (
            "all-MiniLM-L6-v2@5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
            "sentence-transformers/all-MiniLM-L6-v2",
            "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
        ),
    ],
)
def test_a_name_may_have_a_revision(given, name, revision, hub):
    encoder = TextEncoder.from_pretrained(given)
    assert hub == [(name, revision)] and encoder.name == given


def test_a_revision_is_no_part_of_the_fingerprint(hub):
    named, revision = (TextEncoder.from_pretrained(f"some/model{at}") for at in ("", "@main"))
    assert (
        named.fingerprint
        == revision.fingerprint
        == TextEncoder.from_pretrained(GOLDENS / "tiny_bert").fingerprint
    )
    assert "some/model@main" in revision.description


def test_a_directory_with_an_at_is_a_directory(tmp_path, hub):
    directory = shutil.copytree(GOLDENS / "tiny_bert", tmp_path / "model@main")
    assert pretrained.resolve(directory) == directory and not hub


@pytest.mark.parametrize(
    "given",
    [
        *(
            "some/model@",
            "@main",
            "some/model@@main",
            "some/model@-x",
            "a/b/c@main",
            "some/model@a b",
            "~nobody/x@y",
        ),
        *("a\0b", "x" * 5000, "x@" + "y" * 5000),
    ],
)
def test_what_is_no_name_is_one_line(given, hub):
    with pytest.raises(ValueError, match="neither") as error:
        TextEncoder.from_pretrained(given)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700 and not hub


@pytest.mark.parametrize("given", [None, 5, b"some/model", ["some/model"]])
def test_a_name_is_text(given):
    with pytest.raises(ValueError, match="must be a directory or a name"):
        TextEncoder.from_pretrained(given)
