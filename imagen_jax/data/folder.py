"""Captioned pictures in a folder, with captions in .txt files beside them or in one table.

Captions stand either in a .txt file beside each picture (photo.jpg with photo.txt or photo.jpg.txt)
or in one table at the top of the folder, see `caption_table`. A picture with several captions (lines
of the .txt, rows of the table) becomes one record per caption.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from imagen_jax.data import caption_table, captions, listing
from imagen_jax.data.caption_table import TABLES
from imagen_jax.data.parts import Part
from imagen_jax.data.pictures import Found
from imagen_jax.data.quarantine import LeftOut, Unusable

PART = 256  # pictures
_TEXTUAL = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".caption", ".xml")  # where people keep captions


def tables_among(files: Iterable[str]) -> list[str]:
    """The caption tables at the top, however their names are capitalised."""
    return [file for file in files if file.lower() in TABLES]


def relevant(files: Iterable[str]) -> list[str]:
    """Those that have a say in what is made of the folder."""
    endings = (*listing.PICTURES, *listing.UNREAD, ".txt")
    return [file for file in files if listing.ending(file) in endings or file.lower() in TABLES]


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
          ValueError: no pictures, none with a caption, two caption tables, a table beside captions in
            .txt files, or a table without the columns.
        """
        found = listing.pictures_among(files)
        if not found:
            raise ValueError(f"{self.root} has no pictures; looked for {' '.join(listing.PICTURES)}.")
        tables = tables_among(files)
        if len(tables) > 1:
            raise ValueError(f"{self.root} has several caption tables, {', '.join(tables)}; keep one.")
        texts = _Texts(files)
        beside = next(filter(None, map(texts.of, found)), None)
        if tables and beside:
            raise ValueError(
                f"{self.root} has both a caption table, {tables[0]}, and captions beside pictures, as "
                f"{beside}; keep one kind (delete the table, or move the .txt files away)."
            )
        # Pictures that are not read are listed if they have captions, so they are looked for as well.
        known = [file for file in files if listing.ending(file) in (*listing.PICTURES, *listing.UNREAD)]
        left_out: list[LeftOut] = []
        if tables:
            rows = caption_table.rows(self.root / tables[0], self.image_key, self.caption_key, left_out)
            items = _from_table(rows, self.root, known, left_out)
        else:
            self._check_keys_unused()
            items = _beside(known, texts, left_out)
        if not items:
            raise ValueError(self._without_captions(found, files, tables, left_out))
        chunks = [items[i : i + PART] for i in range(0, len(items), PART)]
        return [Part(f"{chunk[0][0]} and on", len(chunk), chunk) for chunk in chunks], left_out

    def read(self, part: Part) -> Iterator[Found | LeftOut]:
        for file, text, given in part.what:
            try:
                where = text or file
                if text is not None:
                    given = captions.lines((self.root / text).read_bytes(), text)
                where = file
                found = Found(file, (self.root / file).read_bytes(), given)
            except OSError as error:
                left_out = listing.unreadable(error, where)
                yield LeftOut(file, left_out.reason, f"{where}: {left_out.detail}")
            except Unusable as error:
                yield error.of(file)
            else:
                yield found

    def _check_keys_unused(self) -> None:
        for key, option in ((self.image_key, "--image-key"), (self.caption_key, "--caption-key")):
            if key is not None:
                raise ValueError(
                    f"{option} {key} has no effect: {self.root} has no caption table whose column it could "
                    f"name ({', '.join(TABLES)}); remove it."
                )

    def _without_captions(self, found: list[str], files: list[str], tables: list[str], left_out) -> str:
        """What to say if no picture has a caption: where they are looked for, and what else lies there."""
        named = next((row.file for row in left_out if row.reason == "caption without picture"), None)
        if tables and named:
            return (
                f"{self.root / tables[0]} names none of the {len(found)} pictures: it has {named!r}, where "
                f"{found[0]!r} lies in the folder; write the paths as they are in {self.root}."
            )
        unused: dict[str, str] = {}  # the first of each ending
        for file in sorted(files, key=lambda file: not file.lower().endswith(TABLES)):
            if (kind := listing.ending(file)) in (*_TEXTUAL, ".txt"):
                unused.setdefault(kind, file)
        seen = f" Seen, but not used: {', '.join(unused.values())}." if unused else ""
        return (
            f"{self.root}: none of the {len(found)} pictures has a caption. They are looked for in a .txt file "
            f"beside each (cat.txt or cat.jpg.txt for cat.jpg), or in a table at the top, one of "
            f"{', '.join(TABLES)}.{seen}"
        )


class _Texts:
    """The .txt files of a folder, to be found by picture: cat.jpg.txt, else cat.txt for cat.jpg."""

    def __init__(self, files: Iterable[str]):
        self._all = sorted((file for file in files if listing.ending(file) == ".txt"), reverse=True)
        self._by_stem: dict[str, str] = {}
        for file in self._all:  # of a.txt and a.TXT the former counts
            self._by_stem.setdefault(_composed(_stem(file)), file)

    def of(self, picture: str) -> str | None:
        picture = _composed(picture)
        return self._by_stem.get(picture) or self._by_stem.get(_stem(picture))

    def unused(self, pictures: Iterable[str]) -> list[str]:
        used = set(map(self.of, pictures))
        return sorted(text for text in self._all if text not in used)


def _stem(file: str) -> str:
    return str(PurePosixPath(file).with_suffix(""))


def _beside(known: list[str], texts: _Texts, left_out: list[LeftOut]) -> list[tuple]:
    left_out += [LeftOut(text, "caption without picture") for text in texts.unused(known)]
    items = []
    for file in known:
        text = texts.of(file)
        if _is_read(file, text is not None, "no .txt file beside it", left_out):
            items.append((file, text, ()))
    return items


def _from_table(rows: Iterable[tuple[str, str]], root: Path, known: list[str], left_out) -> list[tuple]:
    given: dict[str, list[str]] = {file: [] for file in known}
    composed = {_composed(file): file for file in known}
    for named, caption in rows:
        file = _inside(named, root)
        # A table from a Mac may write an accent as a letter of its own, or the file's name may.
        file = file if file in given else composed.get(_composed(file))
        if file is not None:
            given[file].append(caption)
        else:
            left_out.append(LeftOut(named, "caption without picture"))
    return [
        (file, None, tuple(those))
        for file, those in given.items()
        if _is_read(file, bool(those), "no row of the table names it", left_out)
    ]


def _is_read(file: str, has_caption: bool, otherwise: str, left_out: list[LeftOut]) -> bool:
    """Whether a picture is to be read; lists it if not. One of an unread format counts if it has a caption."""
    if listing.ending(file) in listing.PICTURES:
        if not has_caption:
            left_out.append(LeftOut(file, "no caption", otherwise))
        return has_caption
    if has_caption:
        left_out.append(LeftOut(file, "unknown format", f"{listing.ending(file)} is not read; convert it"))
    return False


def _inside(file: str, root: Path) -> str:
    """An absolute path as it is under the root; others as they are."""
    for base in dict.fromkeys((root.absolute(), root.resolve())):
        if PurePosixPath(file).is_relative_to(base):
            return PurePosixPath(file).relative_to(base).as_posix()
    return file


def _composed(file: str) -> str:
    return unicodedata.normalize("NFC", file)
