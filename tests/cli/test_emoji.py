"""The command emoji: a font becomes a data set; what cannot be used is refused before any work."""

import os

import numpy as np
import pytest

from imagen_jax import resize
from imagen_jax.data import sources, transforms
from imagen_jax.prepare import fonts


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("prepare_emoji")


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


def test_command_line_fails_in_one_line(tmp_path, run_script):
    done = run_script("prepare_emoji.py", "--output", tmp_path / "out", "--font", "nowhere")
    assert (done.status, done.out) == (2, "") and done.err.count("\n") == 1
    assert done.err.startswith("prepare_emoji.py: --font must be a file; got nowhere")
    assert not list(tmp_path.iterdir())


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
