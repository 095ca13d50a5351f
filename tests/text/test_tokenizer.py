"""Tokenizers that have no tokenizer.json, against the libraries that made them."""

import importlib.util
import json
import os
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from imagen_jax.text import tokenizer
from imagen_jax.text.encoder import TextEncoder
from tests.conftest import GOLDENS
from tests.text.conftest import sentencepiece_directory

BYTES = tokenizer.load(GOLDENS / "tiny_byt5")


@pytest.mark.parametrize(("directory", "golden"), [("t5_tokenizer", "sentencepiece"), ("tiny_byt5", "byt5")])
def test_the_ids_of_the_original(directory, golden):
    path = GOLDENS / "tokens.safetensors"
    arrays = load_file(path)
    with safe_open(path, "numpy") as file:
        captions = json.loads(file.metadata()["captions"])
    tokens = tokenizer.load(GOLDENS / directory)
    expected = np.split(arrays[golden], np.cumsum(arrays[f"{golden}_lengths"])[:-1])
    for caption, ids in zip(captions, expected, strict=True):
        assert tokens.encode([caption]) == [ids.tolist()], caption




@pytest.mark.parametrize(
    ("layout", "caption", "is_unknown"),
    [
        ("t5", "\U0001f43b\U0001f43b\U0001f43b", True),
        ("t5", "\u0645\u0631\u062d\u0628\u0627 \u0628\u0643", True),
        ("t5", "\U0001f43b a red cube", False),
        ("t5", "a photograph", False),
        ("t5", "", False),
        ("t5", "<unk> <unk>", True),
        ("mt5", "\U0001f43b\U0001f43b\U0001f43b", False),  # spelled in bytes
        ("umt5", "\u0645\u0631\u062d\u0628\u0627", False),
    ],
)
def test_what_is_mostly_unknown(layout, caption, is_unknown, tmp_path):
    size = sentencepiece_directory(layout, tmp_path)["vocab_size"]
    assert (tokenizer.load(tmp_path, size).unknown_share(caption) > 0.5) == is_unknown


@given(st.text().filter(lambda text: "<" not in text))  # </s> and the like are tokens of their own
def test_bytes_are_their_own_tokens(text):
    (ids,) = BYTES.encode([text])
    assert ids == [byte + 3 for byte in text.encode()] + [1]


def test_byt5_as_a_text_encoder():
    encoder = TextEncoder.from_pretrained(GOLDENS / "tiny_byt5")
    text = encoder.encode(["\u5317\u4eac", "a cat"])
    assert text.mask.sum(axis=1).tolist() == [7, 6]
    assert len(encoder.fingerprint) == 32


def test_what_a_tokenizer_needs_is_named(tmp_path, monkeypatch):
    directory = shutil.copytree(GOLDENS / "t5_tokenizer", tmp_path / "model")
    (directory / "spiece.model").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="spiece.model must be readable; it is not .*get the tokenizer's files again"):
        tokenizer.load(directory)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="spiece.model must be readable; it is not .*pip install sentencepiece"):
        tokenizer.load(directory)
    (directory / "spiece.model").unlink()
    with pytest.raises(ValueError, match="must hold its tokenizer"):
        tokenizer.load(directory)
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json must be readable; it is not"):
        tokenizer.load(directory)


def library_tokenizer(**change):
    """A tokenizer.json of the tokenizers library."""
    base = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"},
    }  # fmt: skip
    return base | change


def split(regex):
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def replace(regex):
    return {"type": "Replace", "pattern": {"Regex": regex}, "content": "b"}


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": split("(a+)+$")},
        {"pre_tokenizer": split("(a|aa)+b")},
        {"normalizer": replace("(a+)+$")},
        {"pre_tokenizer": split("(")},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "BAAAAP////9hYmNk"}},
        {"model": {"type": "Unigram", "unk_id": None, "vocab": []}},
        {"model": {"type": "Unigram", "unk_id": 7, "vocab": [["a", -1.0]]}},
        {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                   "max_input_chars_per_word": 100}},
        {"model": {"type": "none"}},
        {"model": []},
        {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "x", "type_id": 0}}],
                            "pair": [], "special_tokens": {}}},
    ],
)  # fmt: skip
def test_a_tokenizer_that_panics_is_one_line(change, tmp_path, capfd):
    (tmp_path / "tokenizer.json").write_text(json.dumps(library_tokenizer(**change)))
    with pytest.raises(ValueError, match=f"the tokenizer {tmp_path}/tokenizer.json must be readable;") as error:
        tokenizer.load(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600
    assert capfd.readouterr().err == ""  # nor the stack of the library's own


def test_a_caption_that_panics_the_tokenizer_is_one_line(tmp_path):
    change = {"pre_tokenizer": split("(z|zz)+y")}  # no caption tried while loading has a y behind many z
    (tmp_path / "tokenizer.json").write_text(json.dumps(library_tokenizer(**change)))
    tokens = tokenizer.load(tmp_path)
    for encode in (
        lambda text: tokens.encode([text]),
        tokens.unknown_share,
        lambda text: tokens.cut(text, 3),
    ):
        with pytest.raises(
            ValueError, match="captions must be such as the tokenizer can encode, and it fails"
        ) as error:
            encode("z" * 400 + "x y")
        assert "\n" not in str(error.value)


def test_what_a_library_says_while_loading_is_kept(tmp_path, capfd, monkeypatch):
    (tmp_path / "tokenizer.json").write_text(json.dumps(library_tokenizer()))
    build = tokenizer._build
    monkeypatch.setattr(tokenizer, "_build", lambda *args: os.write(2, b"a notice") and build(*args))
    assert tokenizer.load(tmp_path).encode(["a a b"]) == [[0, 0, 1]]
    assert capfd.readouterr().err == "a notice"


@pytest.mark.parametrize(
    ("model", "num_ids"),
    [
        ({"type": "WordLevel", "vocab": {"a": 0, "<unk>": 999}, "unk_token": "<unk>"}, 1000),  # with gaps
        ({"type": "WordLevel", "vocab": {"a": 0, "<unk>": 1}, "unk_token": "<unk>"}, 2),
    ],
)
def test_ids_are_bounded_by_the_largest_not_by_their_number(model, num_ids, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(library_tokenizer(model=model)))
    assert tokenizer.load(tmp_path, num_ids).num_ids == num_ids
    with pytest.raises(ValueError, match=f"at most the model's {num_ids - 1} tokens; got {num_ids}"):
        tokenizer.load(tmp_path, num_ids - 1)


def test_ids_of_special_tokens_count(tmp_path):
    single = [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {"x": {"id": "x", "ids": [4_000_000_000], "tokens": ["x"]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(library_tokenizer(post_processor=template)))
    with pytest.raises(ValueError, match="at most the model's 100 tokens; got 4000000001"):
        tokenizer.load(tmp_path, 100)


@pytest.mark.parametrize("file", ["tokenizer.json", "spiece.model", "vocab.txt", "tokenizer_config.json"])
def test_a_file_without_end_is_not_read(file, tmp_path):
    if file == "tokenizer_config.json":
        sentencepiece_directory("t5", tmp_path)
    with (tmp_path / file).open("wb") as sparse:
        sparse.truncate(3 << 30)
    with pytest.raises(ValueError, match=f"{tmp_path / file} must have at most .* bytes; got {3 << 30}"):
        tokenizer.load(tmp_path)


@pytest.mark.parametrize("file", ["tokenizer.json", "spiece.model", "vocab.txt"])
def test_a_file_is_bounded_by_the_vocabulary(file, tmp_path):
    with (tmp_path / file).open("wb") as sparse:
        sparse.truncate(5 << 20)
    limit = (4 << 20) + 400 * 22
    with pytest.raises(ValueError, match=f"{tmp_path / file} must have at most {limit} bytes; got {5 << 20}"):
        tokenizer.load(tmp_path, 22)


def test_a_vocabulary_of_many_lines_is_not_built(tmp_path):
    (tmp_path / "vocab.txt").write_bytes(b"\n" * 10_000)
    with pytest.raises(ValueError, match="at most the model's .* tokens; got 10000"):
        tokenizer.load(tmp_path, 21)


@pytest.mark.parametrize("extra_ids", [126, 10**9])
def test_byt5_has_no_more_ids_than_the_model(extra_ids, tmp_path):
    settings = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": extra_ids}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=f"at most the model's 384 tokens; got {259 + extra_ids}"):
        tokenizer.load(tmp_path, 384)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[21]], [[1]], "from 0 to 20, the model's vocabulary; got 21"),
        ([[-1]], [[1]], "from 0 to 20, the model's vocabulary; got -1"),
        ([[5, 2**31 - 1]], [[1, 0]], "got 2147483647"),
        ([5], [1], r"array \[B, L\]"),
        ([[5]], [[1, 1]], r"array \[B, L\]"),
        ([[5.0]], [[1]], r"array \[B, L\]"),
        ([[True]], [[1]], r"array \[B, L\]"),
    ],
)
def test_ids_outside_of_the_vocabulary_are_refused(ids, mask, message):
    encoder = TextEncoder.from_pretrained(GOLDENS / "tiny_bert")
    for array in (np.asarray, jnp.asarray):
        with pytest.raises(ValueError, match=message):
            encoder.embed(array(ids), array(mask))
    with pytest.raises(ValueError, match="got shapes"):
        encoder.embed([[5]], [[1]])


def test_a_tokenizer_beyond_the_vocabulary_is_refused_at_the_caption(monkeypatch):
    encoder = TextEncoder.from_pretrained(GOLDENS / "tiny_bert")
    monkeypatch.setattr(encoder._tokenizer, "encode", lambda captions: [[2, 21, 3] for _ in captions])
    with pytest.raises(ValueError, match="below the model's vocabulary of 21; got 21 for 'a cat'"):
        encoder.encode(["a cat"])
