"""New directories are there whole or not at all."""

import os

import pytest

from imagen_jax.storage import directories, files


def test_a_directory_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "a" / "b"
    with directories.writing_new(path) as folder:
        files.write(folder / "file", "content")
        assert not path.exists()
    assert (path / "file").read_text() == "content" and os.listdir(tmp_path / "a") == ["b"]


def test_a_failure_leaves_nothing_and_names_the_place_that_was_asked_for(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=rf"^{tmp_path}/new/file cannot be written: No space left on device.$") as error:
        with directories.writing_new(tmp_path / "new") as folder:
            files.write(folder / "file", "content")
    assert error.value.errno == 28 and os.listdir(tmp_path) == []


def test_what_holds_something_is_refused(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, rule in (("full", "be a new directory; got .*full, which has files"), ("full/file", "be a directory")):
        with pytest.raises(ValueError, match=f"^--output must {rule}"):
            directories.check_new(tmp_path / name, "--output")
    with pytest.raises(ValueError, match="^--output must have room for about"):
        directories.check_new(tmp_path / "empty", "--output", needed=2**60)
    directories.check_new(tmp_path / "empty", "--output")
    with directories.writing_new(tmp_path / "empty") as folder:
        files.write(folder / "file", "")
    assert os.listdir(tmp_path / "empty") == ["file"]
