"""Colour emoji fonts as data sets: names from Unicode, and one picture for each glyph."""

from itertools import islice

import numpy as np
import pytest
from PIL import features

from imagen_jax.prepare import fonts


@pytest.fixture
def font():
    try:
        return fonts.find_font(None)
    except ValueError as error:
        pytest.skip(str(error))


def test_single_names():
    assert fonts.single_name("😎") == "smiling face with sunglasses"
    for nothing in "\x00\u200d\ufe0f \ue000":  # control, joiner, variation, space, private use
        assert fonts.single_name(nothing) is None


@pytest.mark.parametrize(
    "sequence, name",
    [
        ("👋🏽", "waving hand sign, medium skin tone"),
        ("👩🏿‍🚀", "woman astronaut, dark skin tone"),
        ("🏃‍♀️", "woman runner"),
        ("🧏🏻‍♂️", "deaf man, light skin tone"),
        ("👳‍♀️", "woman with turban"),
        ("🧜‍♀️", "mermaid"),
        ("🕵🏻‍♀️", "woman sleuth or spy, light skin tone"),
        ("👨‍👩‍👧", "family: man, woman, girl"),
        ("👩🏻‍🤝‍👨🏿", "holding hands: woman, light skin tone and man, dark skin tone"),
        ("👩‍❤️‍💋‍👩", "kiss: woman and woman"),
        ("3️⃣", "keycap digit three"),
        ("🐻‍❄", "polar bear"),
    ],
)
def test_sequence_names(sequence, name):
    found = dict(fonts.candidates(list("👋🏃🧏👳🧜🕵🐻")))
    assert found[sequence] == name


def test_every_candidate_is_one_caption():
    found = list(fonts.candidates(list("👋🏃")))
    assert len(dict(found)) == len(found)  # no sequence twice
    assert all(name == name.strip() and "  " not in name for _, name in found)


def test_glyphs_are_centred_on_white_and_differ(font):
    got = list(islice(fonts.pictures(font), 40))
    assert len({picture.tobytes() for _, _, picture in got}) == 40
    for _, _, picture in got:
        side = len(picture)
        assert picture.shape == (side, side, 3) and picture.dtype == np.uint8
        rows, columns = ((picture < 250).any(2).any(axis) for axis in (1, 0))
        for ink in (np.flatnonzero(rows), np.flatnonzero(columns)):
            assert abs(ink[0] - (side - 1 - ink[-1])) <= 6  # soft edges move the box a little


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow lacks raqm: no sequences")
def test_sequences_are_one_glyph(font):
    opened, characters = fonts.open_font(font)
    one = opened.getlength("😀")
    assert opened.getlength("👩🏿‍🚀") <= one < opened.getlength("🚀🏿")
    assert "🚀" in characters
