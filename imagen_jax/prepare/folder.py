"""Captioned pictures in a folder, with captions in files beside them or in one table.

Captions stand either in a .txt file beside each picture (photo.jpg with photo.txt or photo.jpg.txt), or
else in a field of a .json file there, or in one table at the top of the folder, see `caption_table`. A
picture with several captions (lines of the .txt, rows of the table) becomes one record per caption.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from imagen_jax.prepare import caption_table, captions, listing, text_files
from imagen_jax.prepare.caption_table import TABLES
from imagen_jax.prepare.captions import CAPTIONS
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.parts import Part
from imagen_jax.prepare.pictures import Found
from imagen_jax.prepare.quarantine import LeftOut, Shortlist, Unusable
from imagen_jax.storage import input_files

PART = 256  # pictures
_BESIDE = (".txt", ".json")  # looked for in this order
_LOOK = 64  # pictures whose .json files are looked at before any work
_TEXTUAL = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".caption", ".xml")  # where people keep captions


def tables_among(files: Iterable[str]) -> list[str]:
    """The caption tables at the top, however their names are capitalised."""
    return [file for file in files if file.lower() in TABLES]


def relevant(files: Iterable[str]) -> list[str]:
    """Files that affect the result."""
    endings = (*listing.PICTURES, *listing.UNREAD, *_BESIDE)
    return [file for file in files if listing.ending(file) in endings or file.lower() in TABLES]


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of pictures. The keys, if given, are the names of the table's columns.

    What is in a part: for each picture (file, the .txt and .json files beside it, captions of the table).
    """

    root: Path
    image_key: str | None = None
    caption_key: str | None = None
    limits: Limits = Limits()

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
        # A named field goes before .txt files, as in archives.
        texts = _Texts(files, _BESIDE[::-1] if self.caption_key else _BESIDE)
        beside = [text for file in found for text in texts.of(file)]
        text_beside = next(filter(_is_text, beside), None)
        if tables and text_beside:
            raise ValueError(
                f"{self.root} has both a caption table, {tables[0]}, and captions beside pictures, as "
                f"{text_beside}; keep one kind (delete the table, or move the .txt files away)."
            )
        # Pictures that are not read are listed if they have captions, so they are looked for as well.
        known = [file for file in files if listing.ending(file) in (*listing.PICTURES, *listing.UNREAD)]
        left_out: list[LeftOut] = []
        if tables:
            rows = caption_table.rows(self.root / tables[0], self.image_key, self.caption_key, left_out)
            items = self._from_table(rows, known, tables[0], left_out)
        else:
            self._check_keys_unused(has_json=not all(map(_is_text, beside)))
            items = _beside(known, texts, left_out)
        if not items or not (tables or text_beside or any(map(self._has_captions, beside[:_LOOK]))):
            raise ValueError(self._without_captions(found, files, tables, left_out))
        chunks = [items[i : i + PART] for i in range(0, len(items), PART)]
        return [Part(f"{chunk[0][0]} and on", len(chunk), chunk) for chunk in chunks], left_out

    def read(self, part: Part) -> Iterator[Found | LeftOut]:
        for file, texts, known in part.what:
            try:
                if texts:
                    known, unused = self._captions(texts)
                    yield from (LeftOut(text, "caption without picture") for text in unused)
                found = Found(file, self._content(file, self.limits.image_bytes), known)
            except Unusable as error:
                yield error.of(file)
            else:
                yield found

    def _captions(self, texts: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The captions in the first file that has any, and the .txt files after it."""
        for number, text in enumerate(texts, 1):
            found = self._captions_in(text)
            if not captions.is_empty(list(found)):
                return found, tuple(filter(_is_text, texts[number:]))
        return (), ()

    def _captions_in(self, text: str) -> tuple[str, ...]:
        content = self._content(text, text_files.MAX_BYTES, f"{text}: ")
        if _is_text(text):
            return captions.lines(content, text)
        return captions.in_json(content, text, (self.caption_key,) if self.caption_key else CAPTIONS)

    def _has_captions(self, text: str) -> bool:
        try:
            return not captions.is_empty(list(self._captions_in(text)))
        except Unusable:
            return False

    def _content(self, file: str, most: int, where: str = "") -> bytes:
        """Raises Unusable if a file is too large or may not be read; `where` begins the detail."""
        try:
            return input_files.read_file(self.root / file, most)
        except input_files.TooLargeError as error:
            raise Unusable("too large", f"{where}{error}") from error
        except (OSError, input_files.NoFileError) as error:
            left_out = listing.unreadable(error, file)
            raise Unusable(left_out.reason, f"{where}{left_out.detail}") from error

    def _from_table(
        self, rows: Iterable[tuple[str, str]], known: list[str], table: str, left_out: list[LeftOut]
    ) -> list[tuple]:
        given: dict[str, dict[str, None]] = {file: {} for file in known}  # each caption once
        composed = {_composed(file): file for file in known}
        unknown = Shortlist(left_out)
        roots = tuple(dict.fromkeys((self.root.absolute(), self.root.resolve())))
        for named, caption in rows:
            file = _inside(named, roots)
            # A table from a Mac may write an accent as a letter of its own, or the file's name may.
            file = file if file in given else composed.get(_composed(file))
            if file is None:
                unknown.add(LeftOut(named, "caption without picture"))
            elif len(given[file]) <= self.limits.captions:  # one more shows that there are too many
                given[file][caption] = None
        unknown.close(table)
        return [
            (file, (), tuple(those))
            for file, those in given.items()
            if _is_read(file, bool(those), "no row of the table names it", left_out)
        ]

    def _check_keys_unused(self, *, has_json: bool) -> None:
        """Without a table; `has_json` if there are .json files, whose field the captions' key names."""
        for key, option in ((self.image_key, "--image-key"), (self.caption_key, "--caption-key")):
            if key is not None and not (option == "--caption-key" and has_json):
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
            f"beside each (cat.txt or cat.jpg.txt for cat.jpg), in the field {' or '.join(CAPTIONS)} of a .json "
            f"there, or in a table at the top, one of {', '.join(TABLES)}.{seen}"
        )


class _Texts:
    """The text files of a folder, to be found by picture: for cat.jpg those of cat.jpg.txt, cat.txt, cat.jpg.json and
    cat.json that there are. `endings` tells their order."""

    def __init__(self, files: Iterable[str], endings: tuple[str, ...] = _BESIDE):
        self._endings = endings
        self._all = sorted((file for file in files if listing.ending(file) in _BESIDE), reverse=True)
        self._by_name: dict[tuple[str, str], str] = {}  # stem and ending
        for file in self._all:  # of a.txt and a.TXT the former counts
            self._by_name.setdefault((_composed(_stem(file)), listing.ending(file)), file)

    def of(self, picture: str) -> tuple[str, ...]:
        picture = _composed(picture)
        names = ((stem, ending) for ending in self._endings for stem in (picture, _stem(picture)))
        return tuple(self._by_name[name] for name in names if name in self._by_name)

    def unused(self, pictures: Iterable[str]) -> list[str]:
        """The .txt files that lie beside none of the pictures."""
        used = {text for picture in pictures for text in self.of(picture)}
        return sorted(text for text in self._all if _is_text(text) and text not in used)


def _is_text(file: str) -> bool:
    return listing.ending(file) == ".txt"


def _stem(file: str) -> str:
    return str(PurePosixPath(file).with_suffix(""))


def _beside(known: list[str], texts: _Texts, left_out: list[LeftOut]) -> list[tuple]:
    left_out += [LeftOut(text, "caption without picture") for text in texts.unused(known)]
    items = []
    for file in known:
        those = texts.of(file)
        if _is_read(file, bool(those), "no .txt or .json file beside it", left_out):
            items.append((file, those, ()))
    return items


def _is_read(file: str, has_caption: bool, otherwise: str, left_out: list[LeftOut]) -> bool:
    """Whether a picture is to be read; lists it if not. One of an unread format counts if it has a caption."""
    if listing.ending(file) in listing.PICTURES:
        if not has_caption:
            left_out.append(LeftOut(file, "no caption", otherwise))
        return has_caption
    if has_caption:
        left_out.append(LeftOut(file, "unknown format", f"{listing.ending(file)} is not read; convert it"))
    return False


def _inside(file: str, roots: Iterable[Path]) -> str:
    """An absolute path as it is under one of the roots; others as they are."""
    if not file.startswith("/"):
        return file
    for root in roots:
        if PurePosixPath(file).is_relative_to(root):
            return PurePosixPath(file).relative_to(root).as_posix()
    return file


def _composed(file: str) -> str:
    return unicodedata.normalize("NFC", file)
