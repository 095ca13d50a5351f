"""Tokenizers that have no tokenizer.json, against the libraries that made them."""

import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from imagen_jax.text import tokenizer
from imagen_jax.text.encoder import TextEncoder

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.mark.parametrize(("directory", "golden"), [("t5_tokenizer", "sentencepiece"), ("tiny_byt5", "byt5")])
def test_the_ids_of_the_original(directory, golden):
    path = GOLDENS / "tokens.safetensors"
    arrays = load_file(path)
    with safe_open(path, "numpy") as file:
        captions = json.loads(file.metadata()["captions"])
    tokens = tokenizer.load(GOLDENS / directory)
    expected = np.split(arrays[golden], np.cumsum(arrays[f"{golden}_lengths"])[:-1])
    for caption, ids in zip(captions, expected, strict=True):
        assert tokens.encode(caption).ids == ids.tolist(), caption


@given(st.text())
def test_bytes_are_their_own_tokens(text):
    ids = tokenizer.load(GOLDENS / "tiny_byt5").encode(text).ids
    assert ids == [byte + 3 for byte in text.encode()] + [1]


def test_byt5_as_a_text_encoder():
    encoder = TextEncoder.from_pretrained(GOLDENS / "tiny_byt5")
    text = encoder.encode(["\u5317\u4eac", "a cat"])
    assert text.mask.sum(axis=1).tolist() == [7, 6]
    assert len(encoder.fingerprint) == 32


def test_what_a_tokenizer_needs_is_named(tmp_path, monkeypatch):
    directory = shutil.copytree(GOLDENS / "t5_tokenizer", tmp_path / "model")
    (directory / "spiece.model").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="spiece.model cannot be read .*get the tokenizer's files again"):
        tokenizer.load(directory)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="spiece.model cannot be read .*pip install sentencepiece"):
        tokenizer.load(directory)
    (directory / "spiece.model").unlink()
    with pytest.raises(ValueError, match="must hold its tokenizer"):
        tokenizer.load(directory)
    (directory / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="tokenizer.json cannot be read"):
        tokenizer.load(directory)
