"""Tables of captions in a folder of pictures: a file and a caption in each row, as JSON lines or CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from imagen_jax import checks
from imagen_jax.checks import Verbatim, require
from imagen_jax.prepare import captions, listing, text_files
from imagen_jax.prepare.captions import CAPTIONS
from imagen_jax.prepare.quarantine import LeftOut, Shortlist, Unusable
from imagen_jax.storage import input_files

TABLES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
FILE_COLUMNS = ("file", "file_name", "filename", "image", "image_path", "path")
_SAVE = "save it as UTF-8"


def rows(
    table: Path, image_key: str | None, caption_key: str | None, left_out: list[LeftOut]
) -> Iterator[tuple[str, str]]:
    """Yield (file, caption) of each usable row of a file of JSON lines or CSV; append the others to `left_out`.

    The keys are the names of the columns, if not the usual ones.

    Raises:
      ValueError: two columns have the same name, the table is not a file, or, at the end, no row is usable.
    """
    try:
        with text_files.opened(table) as content:
            yield from _Rows(table, image_key, caption_key, left_out).of(content)
    except input_files.NoFileError as error:
        raise ValueError(f"{table} must be a file; got {error.kind}: remove it.") from error


class _Rows:
    """The state of reading one table."""

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
                self._first_mistake = self._first_mistake or f"line {number} has {error.detail}"
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
            rule = f"have rows with a file ({', '.join(self._files)}) and a caption ({', '.join(self._captions)})"
            raise checks.error(self._table, rule, Verbatim("none"), self._why(lines.first))

    def _file_and_captions(self, row: object) -> tuple[str, tuple[str, ...]] | None:
        """Return the file and captions of a row, None if one is missing; raise Unusable if they cannot be read."""
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
        letters = set().union(*found)
        if any("\ud800" <= letter <= "\udfff" for letter in letters):
            raise Unusable("unreadable caption", f"text that is not UTF-8: {_SAVE}")
        if "\0" in letters:
            raise Unusable("unreadable caption", f"a NUL character: {_SAVE}")
        return PurePosixPath(file.strip("\ufeff \t\r\n").replace("\\", "/")).as_posix(), found

    def _read(self, lines: text_files.Lines) -> Iterator[tuple[int, object]]:
        """Yield (line number, row); instead of a row that cannot be parsed, the Unusable error."""
        read = self._read_json if _is_json(self._table) else self._read_csv
        number = 0
        try:
            for number, row in read(lines):
                yield number, row
        except UnicodeDecodeError as error:
            detail = f"text that is not {error.encoding.upper()}, and the rest is not read: {_SAVE}"
            yield number + 1, Unusable("unreadable caption", detail)

    def _read_json(self, lines: text_files.Lines) -> Iterator[tuple[int, object]]:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _too_long() if lines.pop_cut() else _json(line)

    def _read_csv(self, lines: text_files.Lines) -> Iterator[tuple[int, object]]:
        csv.field_size_limit(text_files.MAX_BYTES)
        # Strict: otherwise an open quote makes all lines up to the next quote one caption.
        reader = csv.reader(lines, strict=True)
        header = None
        while True:
            number = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                yield number, _unusable(error)
                if "field larger than" in str(error):
                    return  # the rest is within quotes
                continue
            if fields is None:
                return
            if lines.pop_cut():
                yield number, _too_long()
            elif header is None:
                header = self._header(fields)
            elif any(map(str.strip, fields[len(header) :])):
                detail = "more fields than the header: put quotes around captions with commas"
                yield number, Unusable("unusable table row", detail)
            elif fields:
                yield number, dict(zip(header, fields, strict=False))

    def _header(self, fields: list[str]) -> list[str] | None:
        """Return the names of the columns, None if there are none; raise ValueError if two wanted ones are equal."""
        if not any(map(str.strip, fields)):
            return None
        names = [name.strip() for name in fields]
        for name in captions.columns(names, (*self._files, *self._captions)):
            num = names.count(name)
            require(num == 1, self._table, f"have one column called {name}", num, "rename all but one")
        return names

    def _why(self, first: str) -> str:
        """Return why no row can be used; `first` is the first line."""
        return (
            (None if _is_json(self._table) else _separators(first, {*self._files, *self._captions}))
            or self._first_mistake
            or _mistake(self._table, first)
            or f"its columns are {listing.told(self._columns)}, name the right ones with --image-key and "
            "--caption-key"
        )


def _unusable(error: csv.Error) -> Unusable:
    if "field larger than" in str(error):
        detail = f"a field of more than {text_files.MAX_BYTES} characters, or an open quote; the rest is not read"
        return Unusable("too large", detail)
    if "unexpected end" in str(error):
        return Unusable("unusable table row", "a quote that is never closed")
    detail = f"quotes that end within a field: double those that belong to the caption ({error})"
    return Unusable("unusable table row", detail)


def _too_long() -> Unusable:
    return Unusable("too large", f"more than {text_files.MAX_BYTES} characters")


def _is_json(table: Path) -> bool:
    return table.suffix.lower() == ".jsonl"


def _json(line: str) -> object:
    try:
        return captions.parse_json(line.lstrip("\ufeff"))  # in concatenated tables
    except ValueError:
        return None


def _separators(first: str, wanted: set[str]) -> str | None:
    """Return what is wrong with a table whose columns are not separated by commas."""
    for separator in (";", "\t", "|"):
        if wanted & {name.strip('" ').lower() for name in first.split(separator)} and "," not in first:
            return f"its columns are separated by {separator!r}, where commas are expected, save it with commas"
    return None


def _mistake(table: Path, first: str) -> str | None:
    """Return the reason why no row can be used, if it is a common one; `first` is the first line."""
    if not first:
        return "it is empty"
    if "\0" in first:
        return f"it has NUL characters, as UTF-16 without a byte order mark has, {_SAVE}"
    if _is_json(table):
        if isinstance(row := _json(first), dict):
            return None
        if first.startswith("["):
            return "it is a JSON array, where each line should be an object, write one object per line"
        what = "no JSON" if row is None else f"a {type(row).__name__}"
        return f'its first line is {what}, where each should be an object, as {{"file": "a.jpg", "caption": "a cat"}}'
    fields = next(csv.reader([first[:1000]]))
    if any(listing.ending(field.strip()) in listing.PICTURES for field in fields):
        return f"it has no header: its first line is {first[:60]!r}, put a line file,caption above it"
    return None
