"""Text files in the encodings and with the line ends that people's editors write."""

import codecs
import os
import re
import threading

import pytest

from imagen_jax.prepare import captions, text_files
from imagen_jax.prepare.quarantine import Unusable

TEXT = "größer\u2028\x0c\n😀 a\r\nb\rc\x85\x0bd\u2029e\x1c\n"
LINES = ["größer\u2028\x0c", "😀 a", "b", "c\x85\x0bd\u2029e\x1c", ""]


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
def test_utf8_is_read_with_and_without_a_mark(mark):
    assert text_files.split(text_files.decode(mark + TEXT.encode())) == LINES


@pytest.mark.parametrize("name", ["utf-16", "utf-32"])
@pytest.mark.parametrize("order", ["le", "be"])
def test_other_encodings_are_told_by_their_mark(name, order, tmp_path):
    content = f"\ufeff{TEXT}".encode(f"{name}-{order}")
    (tmp_path / "a.txt").write_bytes(content)
    assert text_files.read_lines(tmp_path / "a.txt") == LINES
    assert captions.read(content, "a.txt") == tuple(LINES)


@pytest.mark.parametrize(
    "content, message",
    [
        ("a\nb\rcafé\n".encode("cp1252"), "line 3 is not UTF-8 (byte 0xe9): save the file as UTF-8."),
        ("“a”".encode("cp1252"), "line 1 is not UTF-8 (byte 0x93)"),
        ("a\r\n日本".encode("shift-jis"), "line 2 is not UTF-8 (byte 0x93)"),
        (b"a\ncut \xf0\x9f\x98", "line 2 is not UTF-8 (byte 0xf0)"),
        ("a\ud800".encode("utf-8", "surrogatepass"), "line 1 is not UTF-8 (byte 0xed)"),
        (b"\xc0\xaf", "line 1 is not UTF-8 (byte 0xc0)"),
        ("a\nb".encode("utf-16-le"), "line 1 has a NUL character: save the file as UTF-8."),
        ("a\nb".encode("utf-32-be"), "line 1 has a NUL character"),
        (b"a\nb\nc\0", "line 3 has a NUL character"),
        (codecs.BOM_UTF16_LE + b"a\0\n\0b", "line 2 is not UTF-16-LE: save the file as UTF-8."),
        (codecs.BOM_UTF16_BE + b"\xd8\x00\0a", "line 1 is not UTF-16-BE"),
        (codecs.BOM_UTF32_LE + b"\0\0\x11\0", "line 1 is not UTF-32-LE"),
    ],
)
def test_what_is_not_text_is_named_with_its_line(content, message, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"--prompts-file {tmp_path}/a.txt must be ")) as raised:
        text_files.read_lines(tmp_path / "a.txt", "--prompts-file")
    assert message in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(Unusable, match=re.escape(message)) as raised:
        captions.read(content, "a.txt")
    assert raised.value.reason == "unreadable caption"


def test_only_files_are_read_and_nothing_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_BYTES", 10)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "large").write_bytes(b"a" * 11)
    os.truncate(tmp_path / "large", 2**40)  # one of holes
    for name, message in (
        ("pipe", "is a pipe: give a text file"),
        ("link", "is a pipe"),
        (".", "is a folder"),
        ("/dev/null", "is a device"),
        ("/dev/zero", "is a device"),
        ("large", "must have at most 10 bytes"),
        ("/proc/meminfo", "must have at most 10 bytes"),
    ):
        with pytest.raises(ValueError, match=message):
            text_files.read_lines(tmp_path / name)
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (("loop", "cannot be read (Too many levels"), ("missing", "does not exist: give")):
        message = re.escape(f"--prompts-file must be a text file; got {tmp_path / name}, which {reason}")
        with pytest.raises(ValueError, match=message):
            text_files.read_lines(tmp_path / name, "--prompts-file")


def test_a_pipe_of_the_shell_is_read():
    reading, writing = os.pipe()
    threading.Timer(0.05, lambda: (os.write(writing, b"one\ntwo"), os.close(writing))).start()
    assert text_files.read_lines(f"/dev/fd/{reading}") == ["one", "two"]
    os.close(reading)
