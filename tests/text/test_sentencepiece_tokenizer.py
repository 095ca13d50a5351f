"""Tokenizers made from spiece.model alone give the ids of the original."""

import json
import shutil

import pytest

from imagen_jax.text import tokenizer
from tests.conftest import GOLDENS
from tests.text.conftest import SPIECE, sentencepiece_directory


@pytest.mark.parametrize("layout", SPIECE["layouts"])
def test_the_ids_from_spiece_model_alone(layout, tmp_path):
    found = sentencepiece_directory(layout, tmp_path)
    tokens = tokenizer.load(tmp_path, found["vocab_size"])
    assert tokens.num_ids <= found["vocab_size"]
    for caption, ids in zip(SPIECE["captions"], found["ids"], strict=True):
        assert tokens.encode([caption]) == [ids], caption
        assert tokens.cut(caption, 3) == ([*ids[:2], ids[-1]] if len(ids) > 3 else ids)


def test_sentencepiece_itself_gives_the_ids_of_ordinary_text(tmp_path):
    import sentencepiece

    for model in ("t5", "mt5", "umt5", "bpe"):
        path = GOLDENS / "sentencepiece" / f"{model}.model"
        original = sentencepiece.SentencePieceProcessor(model_file=str(path))
        shutil.copy(path, tmp_path / "spiece.model")
        tokens = tokenizer.load(tmp_path)
        captions = [caption for caption in SPIECE["captions"] if "<" not in caption]
        assert tokens.encode(captions) == [[*ids, original.eos_id()] for ids in original.encode(captions)]


@pytest.mark.parametrize(
    ("change", "beside", "message"),
    [
        ({"extra_ids": 10**9}, {}, "extra_ids must be at most the model's 226 tokens; got 1000000000"),
        ({"extra_ids": 129}, {}, "at most the model's 226 tokens; got 227"),
        ({"extra_ids": -1}, {}, "tokenizer_config.json: extra_ids must be an integer from 0"),
        ({"extra_ids": "100"}, {}, "tokenizer_config.json: extra_ids must be an integer from 0"),
        ({"extra_ids": True}, {}, "tokenizer_config.json: extra_ids must be an integer from 0"),
        ({"extra_ids": [1]}, {}, "tokenizer_config.json: extra_ids must be an integer from 0"),
        ({"eos_token": "<nothing>", "extra_ids": 0}, {}, None),  # the model has its own
        ({"eos_token": 1}, {}, "eos_token must be a token; got 1"),
        ({"pad_token": ["<pad>"]}, {}, "pad_token must be a token"),
        ({"pad_token": "\ud800"}, {}, "pad_token must be a token"),
        ({"unk_token": {"text": "<unk>"}}, {}, "unk_token must be a token"),
        ({"additional_special_tokens": "<extra_id_0>"}, {}, "additional_special_tokens must be a list of tokens"),
        ({"additional_special_tokens": [7]}, {}, "additional_special_tokens must be a list of tokens"),
        ({"additional_special_tokens": {"a": "b"}}, {}, "additional_special_tokens must be a list of tokens"),
        ({"added_tokens_decoder": {"a": {"content": "<x>"}}}, {}, "added_tokens_decoder must be an object from ids"),
        ({"added_tokens_decoder": {"-5": {"content": "<x>"}}}, {}, "added_tokens_decoder must be an object from ids"),
        ({"added_tokens_decoder": {"500": {"content": "<x>"}}}, {}, "at most the model's 226 tokens; got 501"),
        ({"added_tokens_decoder": ["<x>"]}, {}, "added_tokens_decoder must be an object from ids"),
        ({}, {"added_tokens.json": {"<x>": 10**12}}, "added_tokens.json: the id of '<x>' must be an integer"),
        ({}, {"added_tokens.json": {"<x>": "7"}}, "added_tokens.json: the id of '<x>' must be an integer"),
        ({}, {"added_tokens.json": {"<x>": 225}}, None),
        ({}, {"added_tokens.json": {"<x>": 226}}, "at most the model's 226 tokens; got 227"),
        ({}, {"special_tokens_map.json": {"eos_token": 5}}, "special_tokens_map.json: eos_token must be a token"),
    ],
)  # fmt: skip
def test_settings_beside_spiece_model_are_bounded(change, beside, message, tmp_path):
    size = sentencepiece_directory("t5", tmp_path)["vocab_size"]
    assert size == 226
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({"extra_ids": 100} | change))
    for name, content in beside.items():
        (tmp_path / name).write_text(json.dumps(content))
    if message is None:
        assert tokenizer.load(tmp_path, size).encode(["a cube"])[0][-1] == 1
        return
    with pytest.raises(ValueError, match=message) as error:
        tokenizer.load(tmp_path, size)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
