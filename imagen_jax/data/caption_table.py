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
from imagen_jax.data.quarantine import LeftOut, Unusable

TABLES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
FILE_COLUMNS = ("file", "file_name", "filename", "image", "image_path", "path")


def rows(
    table: Path, image_key: str | None, caption_key: str | None, left_out: list[LeftOut]
) -> Iterator[tuple[str, str]]:
    """(file, caption) of each usable row; the keys, if given, name the columns. Others go to `left_out`.

    Raises:
      ValueError: one line, at the end; no row is usable, and why.
    """
    files = (image_key,) if image_key else FILE_COLUMNS
    names = (caption_key,) if caption_key else CAPTIONS
    # What is not UTF-8 becomes lone surrogates, so that one such row does not spoil the others.
    content = table.read_text(encoding="utf-8-sig", errors="surrogateescape")
    columns: dict[str, str] = {}
    usable, first_mistake = False, ""
    for number, row in _read(table, content):
        where = f"{table.name}:{number}"
        if isinstance(row, Unusable):
            left_out.append(row.of(where))
            first_mistake = first_mistake or f"line {number} has {row.detail}."
            continue
        row = row if isinstance(row, dict) else {}
        columns.update({str(key): type(value).__name__ for key, value in row.items()})
        # Names may be capitalised or have blanks around them.
        row = {str(name).strip().lower(): value for name, value in row.items()} | row
        file, captions = _pick(row, files), captions_in(_pick(row, names))
        if not (isinstance(file, str) and captions):
            detail = f"expected text in one of {files} and in one of {names}"
            left_out.append(LeftOut(where, "unusable table row", detail))
        elif any(map(_has_surrogates, captions)):
            left_out.append(LeftOut(where, "unreadable caption", "not UTF-8"))
            first_mistake = first_mistake or f"line {number} is not UTF-8 text: save it as UTF-8."
        else:
            usable = True
            for caption in captions:
                yield PurePosixPath(file.strip().replace("\\", "/")).as_posix(), caption
    if not usable:
        have = ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "none"
        reason = (
            first_mistake
            or _mistake(table, content, {*files, *names})
            or f"its columns are: {have}. Name the right ones with --image-key and --caption-key."
        )
        raise ValueError(
            f"{table} has no row with a file ({', '.join(files)}) and a caption ({', '.join(names)}); {reason}"
        )


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _is_json(table: Path) -> bool:
    return table.suffix.lower() == ".jsonl"


def _read(table: Path, content: str) -> Iterator[tuple[int, object]]:
    """(line number, row) of a table; in the place of a row whose fields cannot be told apart, why."""
    if _is_json(table):
        for number, line in enumerate(content.split("\n"), 1):
            if line.strip():
                yield number, _json(line)
        return
    # Strict: else an open quote takes in all lines to the next one, and they become a caption.
    reader = csv.DictReader(io.StringIO(content, newline=""), strict=True)
    while True:
        before = max(reader.line_num, 1)
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield before + 1, Unusable("unusable table row", _told(error))
            continue
        if row is None:
            return
        beyond = row.pop(None, ())
        number = reader.line_num - sum((value or "").count("\n") for value in (*row.values(), *beyond))
        if any(map(str.strip, beyond)):
            detail = "more fields than the header: put quotes around captions with commas"
            yield number, Unusable("unusable table row", detail)
        else:
            yield number, row


def _told(error: csv.Error) -> str:
    if "unexpected end" in str(error):
        return "a quote that is never closed"
    return f"quotes that end within a field: double those that belong to the caption ({error})"


def _json(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _pick(row: dict, columns: tuple[str, ...]) -> object:
    """The first of the columns that is not empty."""
    values = (row.get(name, row.get(name.lower())) for name in columns)
    return next((value for value in values if value is not None and str(value).strip()), None)


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
