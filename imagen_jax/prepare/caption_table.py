"""A table of captions in a folder of pictures: a file and a caption in each row, as JSON lines or CSV."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from imagen_jax.prepare import captions, listing, text_files
from imagen_jax.prepare.captions import CAPTIONS
from imagen_jax.prepare.quarantine import LeftOut, Shortlist, Unusable
from imagen_jax.storage import input_files

TABLES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
FILE_COLUMNS = ("file", "file_name", "filename", "image", "image_path", "path")
_SAVE = "save it as UTF-8"
_FIELD_LIMIT = threading.Lock()  # that of the csv module belongs to the whole process


def rows(
    table: Path, image_key: str | None, caption_key: str | None, left_out: list[LeftOut]
) -> Iterator[tuple[str, str]]:
    """(file, caption) of each usable row; the keys, if given, name the columns. Others go to `left_out`.

    Raises:
      ValueError: one line; two columns have the same name, the table is no file, or, at the end, no row is usable,
        and why.
    """
    try:
        with text_files.opened(table) as content:
            yield from _Rows(table, image_key, caption_key, left_out).of(content)
    except input_files.NoFileError as error:
        raise ValueError(f"{table} must be a file; it is {error.kind}: remove it.") from error


class _Rows:
    """What is found in one table while it is read."""

    def __init__(self, table: Path, image_key, caption_key, left_out: list[LeftOut]):
        self._table = table
        self._files = (image_key,) if image_key else FILE_COLUMNS
        self._captions = (caption_key,) if caption_key else CAPTIONS
        self._left_out = Shortlist(left_out)
        self._first_mistake = ""
        self._columns: dict[str, str] = {}  # and the types of their values

    def of(self, content) -> Iterator[tuple[str, str]]:
        usable, lines = False, text_files.Lines(content)
        for number, row in self._read(lines):
            where = f"{self._table.name}:{number}"
            try:
                both = self._file_and_captions(row)
            except Unusable as error:
                self._left_out.add(error.of(where))
                self._first_mistake = self._first_mistake or f"line {number} has {error.detail}."
                continue
            if both is None:
                detail = f"expected text in one of {self._files} and in one of {self._captions}"
                self._left_out.add(LeftOut(where, "unusable table row", detail))
                continue
            usable = True
            file, found = both
            yield from ((file, caption) for caption in found)
        self._left_out.close(self._table.name)
        if not usable:
            raise ValueError(
                f"{self._table} has no row with a file ({', '.join(self._files)}) and a caption "
                f"({', '.join(self._captions)}); {self._why(lines.first)}"
            )

    def _file_and_captions(self, row: object) -> tuple[str, tuple[str, ...]] | None:
        """What is in a row; None if one of them is missing. Raises Unusable if it cannot be read."""
        if isinstance(row, Unusable):
            raise row
        row = row if isinstance(row, dict) else {}
        if len(self._columns) < 100:
            self._columns.update({str(key): type(value).__name__ for key, value in row.items()})
        file, caption = (captions.first_filled(row, names) for names in (self._files, self._captions))
        if any(isinstance(value, captions.Repeated) for value in (file, caption)):
            raise Unusable("unusable table row", "a key twice with different values: leave one of them out")
        found = captions.texts(caption)
        if not (isinstance(file, str) and found):
            return None
        if any("\ud800" <= letter <= "\udfff" for caption in found for letter in caption):
            raise Unusable("unreadable caption", f"text that is not UTF-8: {_SAVE}")
        if any("\0" in caption for caption in found):
            raise Unusable("unreadable caption", f"a NUL character: {_SAVE}")
        return PurePosixPath(file.strip("\ufeff \t\r\n").replace("\\", "/")).as_posix(), found

    def _read(self, lines: text_files.Lines) -> Iterator[tuple[int, object]]:
        """(line number, row) of a table; in the place of a row whose fields cannot be told apart, why."""
        read = self._read_json if _is_json(self._table) else self._read_csv
        number = 0
        try:
            for number, row in read(lines):
                yield number, row
        except UnicodeDecodeError as error:
            detail = f"text that is not {error.encoding.upper()}, and the rest is not read: {_SAVE}"
            yield number + 1, Unusable("unreadable caption", detail)

    def _read_json(self, lines: text_files.Lines) -> Iterator[tuple[int, object]]:
        num_cut = 0
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            if lines.num_cut > num_cut:
                num_cut = lines.num_cut
                yield number, Unusable("too large", f"more than {text_files.MAX_BYTES} characters")
            else:
                yield number, _json(line)

    def _read_csv(self, lines: text_files.Lines) -> Iterator[tuple[int, object]]:
        # Strict: else an open quote takes in all lines to the next one, and they become a caption.
        reader = csv.reader(lines, strict=True)
        header, num_cut = None, 0
        while True:
            number = reader.line_num + 1
            try:
                fields = _next(reader)
            except csv.Error as error:
                yield number, _told(error)
                if "field larger than" in str(error):
                    return  # what follows lies within quotes
                continue
            if fields is None:
                return
            if lines.num_cut > num_cut:
                num_cut = lines.num_cut
                yield number, Unusable("too large", f"more than {text_files.MAX_BYTES} characters")
            elif header is None:
                header = self._header(fields)
            elif any(map(str.strip, fields[len(header) :])):
                detail = "more fields than the header: put quotes around captions with commas"
                yield number, Unusable("unusable table row", detail)
            elif fields:
                yield number, dict(zip(header, fields, strict=False))

    def _header(self, fields: list[str]) -> list[str] | None:
        """The names of the columns; None if there are none. Raises ValueError if two that are meant have one name."""
        if not any(map(str.strip, fields)):
            return None
        names = [name.strip() for name in fields]
        for name in captions.columns(names, (*self._files, *self._captions)):
            if (num := names.count(name)) > 1:
                raise ValueError(f"{self._table} has {num} columns called {name}: rename all but one.")
        return names

    def _why(self, first: str) -> str:
        """Why no row can be used; `first` is the first line."""
        return (
            (None if _is_json(self._table) else _separators(first, {*self._files, *self._captions}))
            or self._first_mistake
            or _mistake(self._table, first)
            or f"its columns are: {listing.told(self._columns)}. Name the right ones with --image-key and "
            "--caption-key."
        )


def _next(reader: Iterator[list[str]]) -> list[str] | None:
    with _FIELD_LIMIT:
        before = csv.field_size_limit(text_files.MAX_BYTES)
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(before)


def _told(error: csv.Error) -> Unusable:
    if "field larger than" in str(error):
        most = text_files.MAX_BYTES
        return Unusable(
            "too large", f"a field of more than {most} characters, or an open quote; the rest is not read"
        )
    if "unexpected end" in str(error):
        return Unusable("unusable table row", "a quote that is never closed")
    detail = f"quotes that end within a field: double those that belong to the caption ({error})"
    return Unusable("unusable table row", detail)


def _is_json(table: Path) -> bool:
    return table.suffix.lower() == ".jsonl"


def _json(line: str) -> object:
    try:
        return captions.parse_json(line.lstrip("\ufeff"))  # of tables that were put together
    except ValueError:
        return None


def _separators(first: str, wanted: set[str]) -> str | None:
    """What is wrong with a table whose first line has no commas."""
    for separator in (";", "\t", "|"):
        if wanted & {name.strip('" ').lower() for name in first.split(separator)} and "," not in first:
            return (
                f"its columns are separated by {separator!r}, where commas are expected: save it with commas."
            )
    return None


def _mistake(table: Path, first: str) -> str | None:
    """The usual reason why no row of a table can be used, if it is one of these; `first` is its first line."""
    if not first:
        return "it is empty."
    if "\0" in first:
        return f"it has NUL characters, as UTF-16 without a byte order mark has: {_SAVE}."
    if _is_json(table):
        if isinstance(row := _json(first), dict):
            return None
        if first.startswith("["):
            return "it is a JSON array, where each line should be an object: write one object a line."
        what = "no JSON" if row is None else f"a {type(row).__name__}"
        return f'its first line is {what}, where each should be an object, as {{"file": "a.jpg", "caption": "a cat"}}.'
    fields = next(csv.reader([first[:1000]]))
    if any(listing.ending(field.strip()) in listing.PICTURES for field in fields):
        return f"it has no header: its first line is {first[:60]!r}, put a line file,caption above it."
    return None
