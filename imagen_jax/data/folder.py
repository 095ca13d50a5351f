"""A folder of captioned pictures -> a data set; whatever cannot be used is listed, never fatal.

Captions stand either in a .txt file beside each picture (photo.jpg, photo.txt) or in one table at
the top of the folder: captions.jsonl, captions.csv, metadata.jsonl or metadata.csv. A picture with
several captions (lines of the .txt, rows of the table) becomes one record per caption, all in one
split.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from imagen_jax import resize
from imagen_jax.data import transforms

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TABLES = ("captions.jsonl", "captions.csv", "metadata.jsonl", "metadata.csv")
FILE_COLUMNS = ("file", "file_name", "image")
CAPTION_COLUMNS = ("caption", "text")


@dataclasses.dataclass
class Quarantine:
    """What was left out, and why: rows of {"file", "reason"} and a count of each reason's kind."""

    rows: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def add(self, file: str, kind: str, detail: str = "") -> None:
        self.rows.append({"file": file, "reason": kind, "detail": detail})

    def summary(self) -> str:
        """For example "undecodable: 2 (first: a.jpg), no caption: 1 (first: b.png)"."""
        counts = collections.Counter(row["reason"] for row in self.rows)
        first = {row["reason"]: row["file"] for row in reversed(self.rows)}
        return ", ".join(f"{kind}: {n} (first: {first[kind]})" for kind, n in counts.items())

    def write(self, path: Path) -> None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows]
        path.write_text("".join(lines), encoding="utf-8")


def find(folder: Path, quarantine: Quarantine) -> dict[str, list[str]]:
    """Captions by picture, {path relative to the folder, with "/": its captions}, sorted by path.

    Raises:
      ValueError: no such folder, no pictures, two caption tables, or a table without the columns.
    """
    if not folder.is_dir():
        raise ValueError(f"The input folder {folder} does not exist or is not a folder.")
    files = sorted(_visible_files(folder))
    pictures = [file for file in files if PurePosixPath(file).suffix.lower() in PICTURES]
    if not pictures:
        raise ValueError(f"{folder} has no pictures; looked for {' '.join(PICTURES)}.")
    tables = [name for name in TABLES if name in files]
    if len(tables) > 1:
        raise ValueError(f"{folder} has several caption tables, {', '.join(tables)}; keep one.")
    texts = [file for file in files if PurePosixPath(file).suffix.lower() == ".txt"]
    stems = {str(PurePosixPath(file).with_suffix("")) for file in pictures}
    beside = [text for text in texts if str(PurePosixPath(text).with_suffix("")) in stems]
    if tables and beside:
        raise ValueError(
            f"{folder} has both a caption table, {tables[0]}, and captions beside pictures, as "
            f"{beside[0]}; keep one of the two."
        )
    if tables:
        rows = _table_rows(folder / tables[0], quarantine)
    else:
        rows = _text_rows(folder, pictures, texts, quarantine)
    return _group(rows, pictures, quarantine)


def _visible_files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix()


def _text_rows(folder, pictures, texts, quarantine) -> Iterator[tuple[str, str]]:
    by_stem = collections.defaultdict(list)
    for picture in pictures:
        by_stem[str(PurePosixPath(picture).with_suffix(""))].append(picture)
    for text in texts:
        owners = by_stem.get(str(PurePosixPath(text).with_suffix("")), [])
        if not owners:
            quarantine.add(text, "caption without picture")
            continue
        try:
            lines = (folder / text).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            quarantine.add(text, "unreadable caption", str(error))
            continue
        for owner in owners:
            yield from ((owner, line) for line in lines)


def _table_rows(table: Path, quarantine) -> Iterator[tuple[str, str]]:
    try:
        content = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} is not UTF-8 text ({error}); save it as UTF-8.") from error
    read = _jsonl_rows if table.suffix == ".jsonl" else _csv_rows
    usable = 0
    for number, row in read(content):
        file, caption = _pick(row, FILE_COLUMNS), _pick(row, CAPTION_COLUMNS)
        if isinstance(file, str) and file and isinstance(caption, str):
            usable += 1
            yield PurePosixPath(file.strip().replace("\\", "/")).as_posix(), caption
        else:
            detail = f"expected one of {FILE_COLUMNS} and one of {CAPTION_COLUMNS}"
            quarantine.add(f"{table.name}:{number}", "unusable table row", detail)
    if not usable:
        raise ValueError(
            f"{table} has no row with a file ({', '.join(FILE_COLUMNS)}) and a caption "
            f"({', '.join(CAPTION_COLUMNS)})."
        )


def _jsonl_rows(content: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


def _csv_rows(content: str) -> Iterator[tuple[int, object]]:
    reader = csv.DictReader(io.StringIO(content, newline=""))
    for row in reader:
        yield reader.line_num, row


def _pick(row, columns):
    return next((row[c] for c in columns if isinstance(row, dict) and c in row), None)


def _group(rows: Iterable[tuple[str, str]], pictures, quarantine) -> dict[str, list[str]]:
    found = {picture: [] for picture in pictures}
    for file, caption in rows:
        caption = caption.strip()
        if file not in found:
            quarantine.add(file, "caption without picture")
        elif caption and caption not in found[file]:
            found[file].append(caption)
    for picture, captions in found.items():
        if not captions:
            quarantine.add(picture, "no caption")
    return {picture: captions for picture, captions in found.items() if captions}


def split_of(file: str, validation_fraction: float, test_fraction: float) -> str:
    """The split of a picture by the hash of its name: stable when other pictures come or go."""
    digest = hashlib.sha256(file.encode("utf-8", "surrogateescape")).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


def normalized(data: bytes, max_size: int) -> tuple[bytes, int]:
    """A picture's bytes as stored, and its shorter side in pixels (before any reduction).

    An upright RGB PNG or JPEG within max_size keeps its bytes; anything else becomes an RGB PNG,
    area averaged if its longer side exceeds max_size. Raises ValueError if it cannot be decoded.
    """
    x = transforms.decode(data)  # all of it, to be sure that it is whole
    height, width = x.shape[:2]
    if max(height, width) > max_size:
        scale = max_size / max(height, width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        small = np.rint(resize.area(x, size)).astype(np.uint8)
        return transforms.encode_png(small), min(height, width)
    with Image.open(io.BytesIO(data)) as image:
        plain = image.mode == "RGB" and not image.has_transparency_data
        upright = image.getexif().get(0x0112, 1) == 1  # the EXIF orientation
        if plain and upright and image.format in ("PNG", "JPEG"):
            return data, min(height, width)
    return transforms.encode_png(x), min(height, width)


def records(
    folder: Path,
    captions: dict[str, list[str]],
    split: str,
    quarantine: Quarantine,
    seen: dict[bytes, str],
    *,
    min_size: int,
    max_size: int,
) -> Iterator[dict]:
    """The records of one split; unusable pictures go to the quarantine.

    `seen` (content hash -> split), shared between the splits, keeps a copy of a picture under
    another name from standing in two splits.
    """
    for file, lines in captions.items():
        try:
            data = (folder / file).read_bytes()
            image, side = normalized(data, max_size)
        except (OSError, ValueError) as error:
            quarantine.add(file, "undecodable", str(error))
            continue
        if side < min_size:
            quarantine.add(file, "too small", f"shorter side {side} < {min_size} pixels")
        elif seen.setdefault(hashlib.sha256(data).digest(), split) != split:
            quarantine.add(file, "copy of a picture in another split")
        else:
            yield from ({"image": image, "caption": line} for line in lines)
