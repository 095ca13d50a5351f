"""Captioned pictures in a folder, with captions in files beside them or in one table.

Captions are in a .txt file beside each picture (photo.jpg with photo.txt or photo.jpg.txt), in a field of a .json file
there, or in one table at the top of the folder, see `caption_table`. A picture with several captions (lines of the
.txt, rows of the table) becomes one record per caption.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

from imagen_jax import checks
from imagen_jax.checks import Verbatim, require
from imagen_jax.prepare import caption_table, captions, listing, text_files
from imagen_jax.prepare.caption_table import TABLES
from imagen_jax.prepare.captions import CAPTIONS
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.parts import Part
from imagen_jax.prepare.pictures import Found
from imagen_jax.prepare.quarantine import LeftOut, Shortlist, Unusable
from imagen_jax.storage import input_files

PART = 256  # pictures
_BESIDE = (".txt", ".json")  # in order of priority
_LOOK = 64  # pictures whose .json files are read before any work
_TEXTUAL = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".caption", ".xml")  # may hold captions


def relevant(files: Iterable[str]) -> list[str]:
    """Return the files that affect the result."""
    endings = (*listing.PICTURES, *listing.UNREAD, *_BESIDE)
    return [file for file in files if listing.ending(file) in endings or file.lower() in TABLES]


@dataclasses.dataclass(frozen=True)
class Folder:
    """A folder of pictures. The keys, if given, are the names of the table's columns.

    Contents of a part: for each picture (file, the .txt and .json files beside it, captions of the table).
    """

    root: Path
    image_key: str | None = None
    caption_key: str | None = None
    limits: Limits = Limits()

    def plan(self, files: list[str]) -> tuple[list[Part], list[LeftOut]]:
        """Return the pictures among `files` in parts, and what is left out.

        Raises:
          ValueError: no picture has a caption, or there are several caption tables, a table beside captions in .txt
            files, or a table without the columns.
        """
        found = listing.pictures_among(files)
        tables = [file for file in files if file.lower() in TABLES]
        require(len(tables) < 2, self.root, "have one caption table", Verbatim(", ".join(tables)), "keep one")
        # A named field has priority over .txt files, as in archives.
        texts = _Texts(files, _BESIDE[::-1] if self.caption_key else _BESIDE)
        beside = [text for file in found for text in texts.of(file)]
        text_beside = next(filter(_is_text, beside), None)
        if tables and text_beside:
            got, fix = f"{tables[0]} and {text_beside}", "delete the table, or move the .txt files away"
            raise checks.error(self.root, "have captions in a table or beside pictures", Verbatim(got), fix)
        # Pictures of unread formats are listed if they have captions.
        known = [file for file in files if listing.ending(file) in (*listing.PICTURES, *listing.UNREAD)]
        left_out: list[LeftOut] = []
        if tables:
            rows = caption_table.rows(self.root / tables[0], self.image_key, self.caption_key, left_out)
            items = self._from_table(rows, known, tables[0], left_out)
        else:
            self._check_keys_unused(has_json=not all(map(_is_text, beside)))
            items = _beside(known, texts, left_out)
        if not items or not (tables or text_beside or any(map(self._has_captions, beside[:_LOOK]))):
            raise self._without_captions(found, files, tables, left_out)
        chunks = [items[i : i + PART] for i in range(0, len(items), PART)]
        return [Part(f"{chunk[0][0]} and on", len(chunk), chunk) for chunk in chunks], left_out

    def read(self, part: Part) -> Iterator[Found | LeftOut]:
        for file, texts, known in part.what:
            try:
                for number, text in enumerate(texts, 1):
                    if known := self._captions(text):  # the first file that has any counts
                        yield from (LeftOut(t, "caption without picture") for t in texts[number:] if _is_text(t))
                        break
                found = Found(file, self._content(file, self.limits.image_bytes), known)
            except Unusable as error:
                yield error.of(file)
            else:
                yield found

    def _captions(self, text: str) -> tuple[str, ...]:
        content = self._content(text, text_files.MAX_BYTES, f"{text}: ")
        return captions.read(content, text, (self.caption_key,) if self.caption_key else CAPTIONS)

    def _has_captions(self, text: str) -> bool:
        try:
            return bool(self._captions(text))
        except Unusable:
            return False

    def _content(self, file: str, most: int, where: str = "") -> bytes:
        """Read a file; raise Unusable if it is too large or inaccessible. `where` is the beginning of the detail."""
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
            # macOS may store an accent as a separate character, in the table or in the name of the file.
            file = file if file in given else composed.get(_composed(file))
            if file is None:
                unknown.add(LeftOut(named, "caption without picture"))
            elif len(given[file]) <= self.limits.captions:  # one above the limit, to notice the excess
                given[file][caption] = None
        unknown.close(table)
        return [
            (file, (), tuple(those))
            for file, those in given.items()
            if _is_read(file, bool(those), "no row of the table names it", left_out)
        ]

    def _check_keys_unused(self, *, has_json: bool) -> None:
        """Raise ValueError if a key is set without a table, except that of captions if there are .json files."""
        rule = f"name a column of a caption table ({', '.join(TABLES)}), which {self.root} lacks"
        require(self.image_key is None, "--image-key", rule, Verbatim(self.image_key), "remove it")
        require(self.caption_key is None or has_json, "--caption-key", rule, Verbatim(self.caption_key), "remove it")

    def _without_captions(
        self, found: list[str], files: list[str], tables: list[str], left_out
    ) -> ValueError:
        """Return the error if no picture has a caption: where captions are expected, and which other files exist."""
        named = next((row.file for row in left_out if row.reason == "caption without picture"), None)
        if tables and named:
            rule, fix = f"name pictures in {self.root}, such as {found[0]!r}", "write the paths relative to the folder"
            return checks.error(self.root / tables[0], rule, named, fix)
        unused: dict[str, str] = {}  # the first of each ending
        for file in sorted(files, key=lambda file: not file.lower().endswith(TABLES)):
            if (kind := listing.ending(file)) in (*_TEXTUAL, ".txt"):
                unused.setdefault(kind, file)
        seen = f", and files that are not used: {', '.join(unused.values())}" if unused else ""
        return ValueError(
            f"{self.root} must have captions: in a .txt file beside each picture (cat.txt or cat.jpg.txt for cat.jpg), "
            f"in the field {' or '.join(CAPTIONS)} of a .json there, or in a table at the top, {', '.join(TABLES)}; "
            f"got none for {len(found)} pictures{seen}."
        )


class _Texts:
    """Finds the text files of a picture: for cat.jpg cat.jpg.txt, cat.txt, cat.jpg.json and cat.json, if they exist.
    `endings` is their order."""

    def __init__(self, files: Iterable[str], endings: tuple[str, ...]):
        self._endings = endings
        self._all = sorted((file for file in files if listing.ending(file) in _BESIDE), reverse=True)
        self._by_name: dict[tuple[str, str], str] = {}  # stem and ending
        for file in self._all:  # a.txt has priority over a.TXT
            self._by_name.setdefault((_composed(_stem(file)), listing.ending(file)), file)

    def of(self, picture: str) -> tuple[str, ...]:
        picture = _composed(picture)
        names = ((stem, ending) for ending in self._endings for stem in (picture, _stem(picture)))
        return tuple(self._by_name[name] for name in names if name in self._by_name)

    def unused(self, pictures: Iterable[str]) -> list[str]:
        """Return the .txt files that are beside none of the pictures."""
        used = {text for picture in pictures for text in self.of(picture)}
        return sorted(text for text in self._all if _is_text(text) and text not in used)


def _is_text(file: str) -> bool:
    return listing.ending(file) == ".txt"


def _stem(file: str) -> str:
    return str(PurePosixPath(file).with_suffix(""))


def _beside(known: list[str], texts: _Texts, left_out: list[LeftOut]) -> list[tuple]:
    left_out += [LeftOut(text, "caption without picture") for text in texts.unused(known)]
    items = [(file, texts.of(file), ()) for file in known]
    return [item for item in items if _is_read(item[0], bool(item[1]), "no .txt or .json file beside it", left_out)]


def _is_read(file: str, has_caption: bool, otherwise: str, left_out: list[LeftOut]) -> bool:
    """Whether to read a picture; otherwise list it, but one of an unread format only if it has a caption."""
    if listing.ending(file) in listing.PICTURES:
        if not has_caption:
            left_out.append(LeftOut(file, "no caption", otherwise))
        return has_caption
    if has_caption:
        left_out.append(LeftOut(file, "unknown format", f"{listing.ending(file)} is not read; convert it"))
    return False


def _inside(file: str, roots: Iterable[Path]) -> str:
    """Return an absolute path relative to one of the roots; return other paths unchanged."""
    for root in roots if file.startswith("/") else ():
        if PurePosixPath(file).is_relative_to(root):
            return PurePosixPath(file).relative_to(root).as_posix()
    return file


def _composed(file: str) -> str:
    return unicodedata.normalize("NFC", file)
