"""Captioned pictures in a folder, with captions in .txt files beside them or in one table.

Captions stand either in a .txt file beside each picture (photo.jpg, photo.txt) or in one table at
the top of the folder: captions.jsonl, captions.csv, metadata.jsonl or metadata.csv. A picture with
several captions (lines of the .txt, rows of the table) becomes one record per caption.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from imagen_jax.data import pictures
from imagen_jax.data.parts import Part
from imagen_jax.data.pictures import CAPTIONS, PICTURES, Found
from imagen_jax.data.quarantine import LeftOut, Unusable

TABLES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
FILE_COLUMNS = ("file", "file_name", "image")
PART = 256  # pictures


def visible_files(folder: Path) -> list[str]:
    """All files under a folder by their paths in it, with "/", sorted; hidden ones are not there."""
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if not any(part.startswith(".") for part in relative.parts) and path.is_file():
            found.append(relative.as_posix())
    return sorted(found)


def pictures_among(files: Iterable[str]) -> list[str]:
    return [file for file in files if PurePosixPath(file).suffix.lower() in PICTURES]


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of pictures. The keys, if given, are the names of the table's columns.

    What is in a part: for each picture (file, the .txt file beside it or None, captions of the table).
    """

    root: Path
    image_key: str | None = None
    caption_key: str | None = None

    def plan(self, files: list[str]) -> tuple[list[Part], list[LeftOut]]:
        """The pictures in parts, and what is left out already; `files` are those in the folder.

        Raises:
          ValueError: no pictures, two caption tables, a table beside captions in .txt files, or a
            table without the columns.
        """
        found = pictures_among(files)
        if not found:
            raise ValueError(f"{self.root} has no pictures; looked for {' '.join(PICTURES)}.")
        tables = [name for name in TABLES if name in files]
        if len(tables) > 1:
            raise ValueError(f"{self.root} has several caption tables, {', '.join(tables)}; keep one.")
        texts = {_stem(file): file for file in files if PurePosixPath(file).suffix.lower() == ".txt"}
        beside = [texts[stem] for stem in map(_stem, found) if stem in texts]
        if tables and beside:
            raise ValueError(
                f"{self.root} has both a caption table, {tables[0]}, and captions beside pictures, as "
                f"{beside[0]}; keep one kind (delete the table, or move the .txt files away)."
            )
        left_out: list[LeftOut] = []
        if tables:
            rows = self._table_rows(self.root / tables[0], left_out)
            items = _from_table(rows, found, left_out)
        else:
            self._check_keys_unused()
            items = _beside(found, texts, left_out)
        chunks = [items[i : i + PART] for i in range(0, len(items), PART)]
        return [Part(f"{chunk[0][0]} and on", len(chunk), chunk) for chunk in chunks], left_out

    def read(self, part: Part) -> Iterator[Found | LeftOut]:
        for file, text, captions in part.what:
            try:
                if text is not None:
                    captions = pictures.lines((self.root / text).read_bytes(), text)
            except OSError as error:
                yield LeftOut(file, "unreadable caption", str(error))
            except Unusable as error:
                yield error.of(file)
            else:
                try:
                    yield Found(file, (self.root / file).read_bytes(), captions)
                except OSError as error:
                    yield LeftOut(file, "undecodable", str(error))

    def _check_keys_unused(self) -> None:
        for key, option in ((self.image_key, "--image-key"), (self.caption_key, "--caption-key")):
            if key is not None:
                raise ValueError(
                    f"{option} {key} has no effect: {self.root} has no caption table whose column it could "
                    f"name ({', '.join(TABLES)}); remove it."
                )

    def _table_rows(self, table: Path, left_out: list[LeftOut]) -> Iterator[tuple[str, str]]:
        files = (self.image_key,) if self.image_key else FILE_COLUMNS
        captions = (self.caption_key,) if self.caption_key else CAPTIONS
        columns: dict[str, str] = {}
        usable = 0
        for number, row in _rows(table):
            if isinstance(row, dict):
                columns.update({str(key): type(value).__name__ for key, value in row.items()})
            file, caption = _pick(row, files), _pick(row, captions)
            if isinstance(file, str) and file.strip() and isinstance(caption, str):
                usable += 1
                yield PurePosixPath(file.strip().replace("\\", "/")).as_posix(), caption
            else:
                detail = f"expected text in one of {files} and in one of {captions}"
                left_out.append(LeftOut(f"{table.name}:{number}", "unusable table row", detail))
        if not usable:
            have = ", ".join(f"{name} ({kind})" for name, kind in columns.items()) or "none"
            raise ValueError(
                f"{table} has no row with a file ({', '.join(files)}) and a caption "
                f"({', '.join(captions)}); its columns are: {have}."
            )


def _stem(file: str) -> str:
    return str(PurePosixPath(file).with_suffix(""))


def _beside(found: list[str], texts: dict[str, str], left_out: list[LeftOut]) -> list[tuple]:
    stems = set(map(_stem, found))
    for stem, text in texts.items():
        if stem not in stems:
            left_out.append(LeftOut(text, "caption without picture"))
    items = []
    for file in found:
        if _stem(file) in texts:
            items.append((file, texts[_stem(file)], ()))
        else:
            left_out.append(LeftOut(file, "no caption", "no .txt file beside it"))
    return items


def _from_table(rows: Iterable[tuple[str, str]], found: list[str], left_out: list[LeftOut]) -> list[tuple]:
    captions = {file: [] for file in found}
    for file, caption in rows:
        if file in captions:
            captions[file].append(caption)
        else:
            left_out.append(LeftOut(file, "caption without picture"))
    for file, given in captions.items():
        if not given:
            left_out.append(LeftOut(file, "no caption", "no row of the table names it"))
    return [(file, None, tuple(given)) for file, given in captions.items() if given]


def _rows(table: Path) -> Iterator[tuple[int, object]]:
    """(line number, row) of a table; a row that cannot be read is None."""
    try:
        content = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not UTF-8 text ({error}); save it as UTF-8.") from error
    if table.suffix == ".jsonl":
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
