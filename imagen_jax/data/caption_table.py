"""A table of captions in a folder of pictures: a file and a caption in each row, as JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from imagen_jax.data import listing
from imagen_jax.data.captions import CAPTIONS
from imagen_jax.data.captions import texts as captions_in
from imagen_jax.data.quarantine import LeftOut

TABLES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
FILE_COLUMNS = ("file", "file_name", "image")


def rows(
    table: Path, image_key: str | None, caption_key: str | None, left_out: list[LeftOut]
) -> Iterator[tuple[str, str]]:
    """(file, caption) of each usable row; the keys, if given, name the columns. Others go to `left_out`.

    Raises:
      ValueError: one line, at the end; no row is usable, and why.
    """
    files = (image_key,) if image_key else FILE_COLUMNS
    names = (caption_key,) if caption_key else CAPTIONS
    content = _content(table)
    columns: dict[str, str] = {}
    usable = False
    for number, row in _read(table, content):
        if isinstance(row, dict):
            columns.update({str(key): type(value).__name__ for key, value in row.items()})
        file, captions = _pick(row, files), captions_in(_pick(row, names))
        if isinstance(file, str) and file.strip() and captions:
            usable = True
            for caption in captions:
                yield PurePosixPath(file.strip().replace("\\", "/")).as_posix(), caption
        else:
            detail = f"expected text in one of {files} and in one of {names}"
            left_out.append(LeftOut(f"{table.name}:{number}", "unusable table row", detail))
    if not usable:
        have = ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "none"
        reason = _mistake(table, content, {*files, *names}) or f"its columns are: {have}."
        raise ValueError(
            f"{table} has no row with a file ({', '.join(files)}) and a caption ({', '.join(names)}); {reason}"
        )


def _content(table: Path) -> str:
    try:
        return table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not UTF-8 text ({error}); save it as UTF-8.") from error


def _is_json(table: Path) -> bool:
    return table.suffix.lower() == ".jsonl"


def _read(table: Path, content: str) -> Iterator[tuple[int, object]]:
    """(line number, row) of a table; a row that cannot be read is None."""
    if _is_json(table):
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                yield number, _json(line)
        return
    reader = csv.DictReader(io.StringIO(content, newline=""))
    while True:
        try:
            row = next(reader, None)
        except csv.Error:  # a field beyond all size
            yield reader.line_num, {}
            continue
        if row is None:
            return
        yield reader.line_num, row


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _pick(row: object, columns: tuple[str, ...]) -> object:
    return next((row[c] for c in columns if isinstance(row, dict) and c in row), None)


def _mistake(table: Path, content: str, wanted: set[str]) -> str | None:
    """The usual reason why no row of a table can be used, if it is one of these."""
    first = next(filter(None, map(str.strip, content.split("\n"))), "")
    if not first:
        return "it is empty."
    if _is_json(table):
        if isinstance(row := _json(first), dict):
            return None
        if first.startswith("["):
            return "it is a JSON array, where each line should be an object: write one object a line."
        what = "no JSON" if row is None else f"a {type(row).__name__}"
        return f'its first line is {what}, where each should be an object, as {{"file": "a.jpg", "caption": "a cat"}}.'
    for separator in (";", "\t", "|"):
        if wanted & {name.strip('" ') for name in first.split(separator)} and "," not in first:
            return (
                f"its columns are separated by {separator!r}, where commas are expected: save it with commas."
            )
    fields = next(csv.reader([first[:1000]]))
    if any(listing.ending(field.strip()) in listing.PICTURES for field in fields):
        return f"it has no header: its first line is {first[:60]!r}, put a line file,caption above it."
    return None
