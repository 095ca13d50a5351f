"""Encoders of one's own: what they must have, and how a configuration names them."""

import dataclasses
import pathlib

import numpy as np
import pytest

from imagen_jax import TextEncoder
from imagen_jax.config import TextConfig
from imagen_jax.registry import Registry
from imagen_jax.structs import TextCond
from imagen_jax.text import encoders

TINY_BERT = pathlib.Path(__file__).parents[1] / "goldens/tiny_bert"


class Letters:
    """A token per letter, whose numbers are its code; nothing but what an encoder must have."""

    name, width, fingerprint = "letters", 4, "letters"

    def encode(self, captions):
        length = max(map(len, captions))
        codes = np.array([[ord(letter) for letter in caption.ljust(length, "\0")] for caption in captions])
        return TextCond(np.repeat(codes[:, :, None], 4, 2).astype(np.float32), codes > 0)


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(encoders, "ENCODERS", Registry("text encoder"))
    encoders.ENCODERS.register("letters")(lambda config, mesh: Letters())


def test_a_configuration_names_it(registered):
    assert isinstance(encoders.from_config(TextConfig(encoder="letters", width=None, length=5)), Letters)
    with pytest.raises(ValueError, match="text.width must be 4, the width of letters; got 5"):
        encoders.from_config(TextConfig(encoder="letters", width=5))
    assert isinstance(
        encoders.from_config(TextConfig(encoder=str(TINY_BERT), width=None, length=8)), TextEncoder
    )


def test_other_weights_than_those_of_training_are_warned_of(registered, recwarn):
    config = TextConfig(encoder="letters", width=4, model_hash="letters")
    encoders.from_config(config)
    assert not recwarn
    with pytest.warns(UserWarning, match=r"letters must have the weights of training, of SHA-256 numbers\.\.\.; got"):
        encoders.from_config(dataclasses.replace(config, model_hash="numbers"))


def test_what_is_registered_must_be_an_encoder(registered):
    encoders.ENCODERS.register("nothing")(lambda config, mesh: None)
    with pytest.raises(ValueError, match="text.encoder nothing must be a TextEncoder, or have name, width"):
        encoders.from_config(TextConfig(encoder="nothing"))


@pytest.mark.parametrize("length", [2, 3, 7])
def test_captions_are_cut_or_padded(length):
    text = encoders.encode(Letters(), ["cat", "ab"], length)
    assert text.embeddings.shape == (2, length, 4) and text.mask.shape == (2, length)
    np.testing.assert_array_equal(text.mask.sum(1), [min(3, length), 2])
    np.testing.assert_array_equal(text.embeddings[0, :2, 0], [*map(ord, "ca")])
    assert not np.asarray(text.embeddings[1, 2:]).any()


def test_ragged_embeddings_are_those_of_each_caption():
    captions = ["a cat", "ab", "c", "a zebra"]
    found = dict(encoders.encode_ragged(Letters(), captions, 3))
    assert {captions[i]: [chr(int(code)) for code in values[:, 0]] for i, values in found.items()} == {
        caption: [*caption] for caption in captions
    }
    assert not list(encoders.encode_ragged(Letters(), [], 3))
