"""Emoji as captioned pictures: honest names from Unicode, and real glyphs."""

import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_emoji.py"


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("prepare_emoji")


@pytest.fixture
def font(script):
    try:
        return script.find_font(None)
    except ValueError as error:
        pytest.skip(str(error))


def test_single_names(script):
    assert script.single_name("😎") == "smiling face with sunglasses"
    for nothing in "\x00\u200d\ufe0f \ue000":  # control, joiner, variation, space, private use
        assert script.single_name(nothing) is None


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
def test_sequence_names(script, sequence, name):
    found = dict(script.candidates(list("👋🏃🧏👳🧜🕵🐻")))
    assert found[sequence] == name


def test_every_candidate_is_one_caption(script):
    found = list(script.candidates(list("👋🏃")))
    assert len(dict(found)) == len(found)  # no sequence twice
    assert all(name == name.strip() and "  " not in name for _, name in found)


def test_missing_font_says_what_to_do(script, monkeypatch, tmp_path):
    monkeypatch.setattr(script, "FONT_FOLDERS", (str(tmp_path),))
    with pytest.raises(ValueError, match="apt-get install fonts-noto-color-emoji.*--font"):
        script.main(script.Options(output=tmp_path / "out"))
    (tmp_path / "bad.ttf").write_text("no font")
    with pytest.raises(ValueError, match="bad.ttf is not a font"):
        script.main(script.Options(output=tmp_path / "out", font=tmp_path / "bad.ttf"))
    with pytest.raises(ValueError, match="--size"):
        script.main(script.Options(output=tmp_path / "out", size=0))
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
    assert done.stderr == "prepare_emoji.py: --font nowhere is not a file.\n"
    assert not list(tmp_path.iterdir())


def test_glyphs_are_centred_on_white_and_differ(script, font):
    got = list(islice(script.pictures(font), 40))
    assert len({picture.tobytes() for _, _, picture in got}) == 40
    for _, _, picture in got:
        side = len(picture)
        assert picture.shape == (side, side, 3) and picture.dtype == np.uint8
        rows, columns = ((picture < 250).any(2).any(axis) for axis in (1, 0))
        for ink in (np.flatnonzero(rows), np.flatnonzero(columns)):
            assert abs(ink[0] - (side - 1 - ink[-1])) <= 6  # soft edges move the box a little


@pytest.mark.skipif(not features.check("raqm"), reason="Pillow lacks raqm: no sequences")
def test_sequences_are_one_glyph(script, font):
    opened, characters = script.open_font(font)
    one = opened.getlength("😀")
    assert opened.getlength("👩🏿‍🚀") <= one < opened.getlength("🚀🏿")
    assert "🚀" in characters


def test_folder_of_pictures(script, font, tmp_path, monkeypatch):
    few = list(islice(script.pictures(font), 5))
    monkeypatch.setattr(script, "pictures", lambda font: iter(few))
    script.main(script.Options(output=tmp_path / "out", font=font, size=32))
    files = sorted((tmp_path / "out").iterdir())
    assert len(files) == 10
    assert {f.read_text().strip() for f in files if f.suffix == ".txt"} == {c for _, c, _ in few}
    assert all(Image.open(f).size == (32, 32) for f in files if f.suffix == ".png")
