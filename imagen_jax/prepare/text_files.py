"""Text files in several encodings: captions, prompts, tables and JSON."""

from __future__ import annotations

import codecs
import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from imagen_jax.storage import input_files

MAX_BYTES = 2**23  # of one file of captions or prompts
# Unlike str.splitlines, not form feeds, U+0085 and U+2028, which occur in captions.
LINE_END = re.compile("\r\n|\r|\n")

# UTF-32 first: its mark begins like that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class NotTextError(ValueError):
    """Bytes that are not text; `detail` is the message without the name of the file."""

    def __init__(self, where: str, detail: str):
        super().__init__(f"{where} {detail}")
        self.detail = detail


def encoding(content: bytes) -> tuple[str, int]:
    """Return the encoding by the byte order mark, UTF-8 without one, and the length of the mark."""
    return next(((name, len(mark)) for mark, name in _MARKS if content.startswith(mark)), ("utf-8", 0))


def decode(content: bytes, where: str = "The file") -> str:
    """Decode a text file: UTF-8, or UTF-16 or UTF-32 with a byte order mark, which is removed.

    Raises:
      NotTextError: the content is not text; the message names the line of `where`.
    """
    name, length = encoding(content)
    try:
        text = str(memoryview(content)[length:], name)
    except UnicodeDecodeError as error:
        before = str(error.object[: error.start], name, "replace")
        byte = f" (byte 0x{error.object[error.start]:02x})" if name == "utf-8" else ""
        detail = f"must be UTF-8; line {_count(before)} is not {name.upper()}{byte}: save the file as UTF-8."
        raise NotTextError(where, detail) from error
    if (place := text.find("\0")) >= 0:
        line = _count(text[:place])
        raise NotTextError(where, f"must be text; line {line} has a NUL character: save the file as UTF-8.")
    return text


def split(text: str) -> list[str]:
    """Split a text at CR LF, LF and lone CR."""
    return LINE_END.split(text)


def read_lines(path: Path, option: str = "the file") -> list[str]:
    """Return the lines of a text file that a user names, including empty ones.

    Args:
      path: a file, or a pipe such as the shell's <(command) or /dev/stdin; of at most MAX_BYTES.
      option: names the file in messages, such as "--prompts-file".

    Raises:
      ValueError: it is not text (see `decode`), not a file, too large, or cannot be read.
    """
    fix = "give a text file"
    content = input_files.read_given(option, path, MAX_BYTES, "a text file", fix, pipes=True)
    return split(decode(content, f"{option} {path}"))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Open a text file in one of the encodings of `decode`.

    Bytes that are not UTF-8 become lone surrogates, so that the other lines can still be read.

    Raises:
      UnicodeDecodeError: while reading, bytes are not UTF-16 or UTF-32.
      input_files.NoFileError, OSError: it cannot be opened.
    """
    with input_files.open_file(path) as file:
        name, length = encoding(file.read(4))
        file.seek(length)
        errors = "surrogateescape" if name == "utf-8" else "strict"
        with io.TextIOWrapper(file, name, errors, newline="") as text:
            yield text


class Lines:
    """The lines of an open text with their ends, each cut to MAX_BYTES characters.

    `first` is the first line that is not blank.
    """

    def __init__(self, text: TextIO):
        self.first, self._text, self._has_cut = "", text, False

    def __iter__(self) -> Iterator[str]:
        while line := self._text.readline(MAX_BYTES):
            rest = "" if len(line) < MAX_BYTES or line.endswith(("\n", "\r")) else "more"
            self._has_cut = self._has_cut or bool(rest)
            while rest and not rest.endswith(("\n", "\r")):
                rest = self._text.readline(MAX_BYTES)
            self.first = self.first or line.strip()
            yield line

    def pop_cut(self) -> bool:
        """Whether a line was cut since the last call."""
        has_cut, self._has_cut = self._has_cut, False
        return has_cut


def _count(before: str) -> int:
    """Return the number of the last line of a text."""
    return len(LINE_END.findall(before)) + 1
