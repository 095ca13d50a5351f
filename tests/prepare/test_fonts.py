"""Colour emoji fonts as data sets: names from Unicode, and one picture for each glyph."""

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import features

from imagen_jax import resize
from imagen_jax.data import sources, transforms
from imagen_jax.prepare import fonts

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_emoji.py"


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("prepare_emoji")


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


def test_what_cannot_be_used_is_refused_before_any_work(script, monkeypatch, tmp_path):
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path),))
    with pytest.raises(ValueError, match="apt-get install fonts-noto-color-emoji.*--font"):
        script.main(script.Options(output=tmp_path / "out"))
    (tmp_path / "bad.ttf").write_text("no font")
    for options, message in (
        ({"font": tmp_path / "bad.ttf"}, "--font must be a font that can be read; got .*bad.ttf"),
        ({"font": tmp_path / "none.ttf"}, "--font must be a file; got .*none.ttf"),
        ({"size": 0}, "--size must be a whole number from 8 to 1024|--size must be at least 8; got 0"),
        ({"validation_fraction": 0.6, "test_fraction": 0.5}, "below 1 together; got 0.6 and 0.5"),
    ):
        with pytest.raises(ValueError, match=message):
            script.main(script.Options(output=tmp_path / "out", **options))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(ValueError, match="not empty"):
        script.main(script.Options(output=tmp_path / "out"))
    assert sorted(os.listdir(tmp_path)) == ["bad.ttf", "out"]


def test_command_line_fails_in_one_line(tmp_path):
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "out"), "--font", "nowhere"]
    env = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr.startswith("prepare_emoji.py: --font must be a file; got nowhere")
        and done.stderr.count("\n") == 1
    )
    assert not list(tmp_path.iterdir())


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


def test_glyphs_become_a_data_set(script, tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 255, (4, 40, 40, 3), np.uint8)
    glyphs = [("b", "letter b", x[0]), ("a" + fonts.VS16, "letter a", x[1]), ("c", "letter c", x[2])]
    monkeypatch.setattr(fonts, "open_font", lambda path: None)
    monkeypatch.setattr(fonts, "pictures", lambda path: iter(glyphs))
    (tmp_path / "any.ttf").touch()
    script.main(script.Options(output=tmp_path / "out", font=tmp_path / "any.ttf", size=32))
    source = sources.open_source(tmp_path / "out")
    assert [record["caption"] for record in source] == ["letter a", "letter b", "letter c"]
    expected = np.rint(resize.area(x[1], 32)).astype(np.uint8)
    np.testing.assert_array_equal(transforms.decode(source[0]["image"]), expected)
    monkeypatch.setattr(fonts, "pictures", lambda path: iter(()))
    with pytest.raises(ValueError, match="no picture: 1 .*use a bitmap colour emoji font"):
        script.main(script.Options(output=tmp_path / "none", font=tmp_path / "any.ttf"))
    assert not (tmp_path / "none").exists()
