"""Files that a user names: regular ones of a limited size, everything else is one line."""

import os

import pytest

from imagen_jax.storage import input_files


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"1234"), None),
        (lambda path: path.write_bytes(b"12345"), "have at most 4 bytes; got {path}, which has 5 bytes, more than 4"),
        (lambda path: path.mkdir(), "be a picture file; got {path}, which is a folder: give a file."),
        (os.mkfifo, "be a picture file; got {path}, which is a pipe: give a file."),
        (lambda path: path.symlink_to("/dev/null"), "be a picture file; got {path}, which is a device"),
        (lambda path: None, "be a picture file; got {path}, which does not exist"),
        (lambda path: path.symlink_to(path), "be a picture file; got {path}, which cannot be read (Too many levels"),
    ],
)
def test_files(tmp_path, make, message):
    path = tmp_path / "a.png"
    make(path)
    read = lambda: input_files.read_given("--image", path, 4, "a picture file", "give a file")
    if message is None:
        assert read() == b"1234"
        return
    with pytest.raises(ValueError) as caught:
        read()
    assert str(caught.value).startswith(f"--image must {message.format(path=path)}")


def test_files_without_a_size_of_their_own_are_bounded_too():
    with pytest.raises(input_files.TooLargeError, match="more than 10 bytes"):
        input_files.read_file(input_files.Path("/proc/self/status"), 10)
