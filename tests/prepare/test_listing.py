"""What lies in a folder: links, what may not be read, disks that fail; nothing is passed over silently."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.prepare import folder, listing, origins, parquet, parts, webdataset
from imagen_jax.prepare.parts import Part
from imagen_jax.prepare.quarantine import LeftOut


def fails(monkeypatch, function, name, code):
    """Makes a function of os or Path fail for paths that end so; tests may run as root, who may read all."""
    owner, attribute = function
    real = getattr(owner, attribute)

    def wrapped(path, *arguments, **options):
        if str(path).endswith(name):
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(owner, attribute, wrapped)


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_links_to_folders_are_followed_once(tmp_path):
    root, other = tmp_path / "in", tmp_path / "other"
    touch(root / "z" / "1.png")
    touch(other / "deep" / "2.png")
    touch(root / ".hidden" / "3.png")
    (root / "a").symlink_to(root / "z")  # lies here under its own name
    (root / "b").symlink_to(other)
    (root / "c").symlink_to(other)
    (other / "back").symlink_to(root)
    (root / "z" / "up").symlink_to(tmp_path)  # would add what lies around the folder
    (root / "loop").symlink_to(root / "loop")
    (root / "gone.png").symlink_to(tmp_path / "nowhere")
    files, left_out = listing.visible_files(root)
    assert [file for file in files if file[0] in "bc"] in (["b/deep/2.png"], ["c/deep/2.png"])
    assert files[-1] == "z/1.png" and len(files) == 2
    assert [(row.file, row.reason) for row in left_out] == [
        ("gone.png", "unreadable file"),
        ("loop", "unreadable file"),
    ]


def test_what_may_not_be_read_is_listed(tmp_path, monkeypatch):
    touch(tmp_path / "open" / "1.png")
    touch(tmp_path / "closed" / "2.png")
    with monkeypatch.context() as patch:
        fails(patch, (os, "scandir"), "closed", errno.EACCES)
        files, left_out = listing.visible_files(tmp_path)
        assert files == ["open/1.png"]
        assert left_out == [LeftOut("closed", "unreadable file", "Permission denied")]
        (tmp_path / "open" / "1.png").unlink()
        with pytest.raises(
            ValueError, match="must have pictures.*; got none: closed cannot be read .Permission denied"
        ):
            origins.survey(tmp_path)
    fails(monkeypatch, (os, "scandir"), "closed", errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        listing.visible_files(tmp_path)


def test_a_file_that_may_not_be_looked_at_has_a_stamp(tmp_path, monkeypatch):
    touch(tmp_path / "1.png")
    before = listing.stamp(tmp_path, ["1.png"])
    assert listing.stamp(tmp_path, ["1.png", "gone.png"]) != before
    fails(monkeypatch, (Path, "stat"), "1.png", errno.EACCES)
    assert listing.stamp(tmp_path, ["1.png"]) != before


def test_a_failing_disk_fails_the_part_and_a_closed_file_is_listed(tmp_path, monkeypatch):
    for name in ("1", "2"):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("a")
    origin = folder.Folder(tmp_path)
    ((part,), _) = origin.plan(["1.png", "1.txt", "2.png", "2.txt"])
    for name, code in (("1.txt", errno.EACCES), ("1.png", errno.ENOENT)):
        with monkeypatch.context() as patch:
            fails(patch, (os, "open"), name, code)
            first, second = origin.read(part)
        assert (first.file, first.reason, second.file) == ("1.png", "unreadable file", "2.png")
    with monkeypatch.context() as patch:
        fails(patch, (os, "open"), "1.png", errno.EIO)
        with (
            pytest.raises(OSError, match="The part 1.png and on failed.*the same command"),
            parts._in_one_line(part),
        ):
            list(origin.read(part))


def test_archives_and_tables_that_are_gone(tmp_path):
    for read in (
        webdataset.Archives(tmp_path).read(Part("a", 0, ("a.tar", None))),
        webdataset.Archives(tmp_path).read(Part("a", 1, ("a.tar", [("1", {"png": (0, 1)})]))),
        parquet.Tables(tmp_path).read(Part("a", 1, ("a.parquet", (0,), 0))),
    ):
        assert [row.reason for row in read] == ["unreadable file"]
    assert parquet.Tables(tmp_path).plan(["a.parquet"])[1][0].reason == "unreadable file"
    with pytest.raises(OSError, match="stale"):
        parquet._damage(OSError(errno.ESTALE, "stale"), "a", "all")


def test_only_what_matters_is_stamped():
    files = ["a.png", "a.txt", "b.HEIC", "Captions.CSV", "sub/captions.csv", "README.md", "Thumbs.db"]
    assert folder.relevant(files) == files[:4]
