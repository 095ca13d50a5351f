"""What a data set can be made from: each kind read exactly, whatever is broken listed and counted."""

import tarfile

import pytest

from tests.prepare.conftest import archive, prepare, random_picture


def test_texts_beside_pictures_are_found_however_they_are_written(tmp_path, script):
    (tmp_path / "in").mkdir()
    for name in ("\u00e9.txt", "b.TXT", "b.txt"):
        (tmp_path / "in" / name).write_text(name)
    for name in ("e\u0301.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(random_picture(1))
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    assert sorted(caption for caption, _ in kept) == ["b.txt", "\u00e9.txt"]
    assert left_out == [("b.TXT", "caption without picture")]


def test_inputs_without_any_picture_say_so(tmp_path, script):
    tarfile.open(tmp_path / "x.tar", "w").close()
    with pytest.raises(
        ValueError, match="must have a usable picture for .*; got none: there are no pictures"
    ):
        prepare(script, tmp_path / "x.tar", tmp_path / "out")


# ---- what is there ----


def test_inputs_that_are_none_are_told_apart(tmp_path, script):
    root = tmp_path / "in"
    root.mkdir()
    (root / "x.tar.gz").write_bytes(b"")
    with pytest.raises(
        ValueError, match="must have pictures.*got none: x.tar.gz is compressed, which is not read, unpack"
    ):
        prepare(script, root, tmp_path / "out")
    with pytest.raises(ValueError, match="must be a folder or a .tar or .parquet file"):
        prepare(script, root / "x.tar.gz", tmp_path / "out")
    archive(root / "x.tar", [("a.png", random_picture(0)), ("a.txt", b"a")])
    (root / "a.png").write_bytes(random_picture(0))
    with pytest.raises(
        ValueError, match=r"got pictures and .tar archives \(a.png, x.tar\): move all but one"
    ):
        prepare(script, root, tmp_path / "out")
    (root / "x.tar").unlink()
    (root / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="--caption-key must name a column .*; got alt: remove it"):
        prepare(script, root, tmp_path / "out", caption_key="alt")
    (root / "a.txt").unlink()
    (root / "captions.jsonl").write_text('{"file": "a.png", "alt": "x"}\n{"file": "a.png", "alt": [1]}\n[]\n')
    with pytest.raises(
        ValueError, match=r"must have rows with a file .* its columns are file \(str\), alt \(list"
    ):
        prepare(script, root, tmp_path / "out")
    kept, left_out = prepare(script, root, tmp_path / "out", caption_key="alt")
    assert kept == [("x", random_picture(0))]
    assert [reason for _, reason in left_out] == ["unknown format"] + ["unusable table row"] * 2
