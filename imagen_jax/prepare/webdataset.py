"""Captioned pictures in .tar archives, as WebDataset and img2dataset write them.

Members belong together if their paths agree up to the first dot of the base name: a/1.jpg, a/1.txt
and a/1.json. Of each such group one member is the picture, by its extension; the captions are the
lines of .txt, or a field of .json where .txt has none. Names may have more dots: a/1.v2.jpg with
a/1.v2.txt is a captioned picture as well. Groups need not lie together in the file.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import posixpath
import sys
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from imagen_jax.prepare import captions, listing, text_files
from imagen_jax.prepare.captions import CAPTIONS
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.parts import Part
from imagen_jax.prepare.pictures import Found
from imagen_jax.prepare.quarantine import LeftOut, Unusable
from imagen_jax.storage import input_files

CUT = 2**30  # bytes of an archive from which on it is cut into several parts
PART = 1024  # pictures of a cut archive
_LOOK = 64  # groups that are looked at before any work
_HEADER = 2**20  # bytes of the headers of one member, with its extended ones
_GLOBAL = 100  # extended headers that hold for all members after them
_MEMBER = 256  # bytes of memory for a member in the index, about, and those of its name
_INDEX = 2**29  # bytes that the index of an archive may take, so it has about two million members

# A group of members by their extensions: (key, {extension: (offset, size) in the archive})
Group = tuple[str, dict[str, tuple[int, int]]]


@dataclasses.dataclass(frozen=True)
class Archives:
    """Archives in a folder. `image_key` is the extension of the pictures, `caption_key` the field of .json, or the
    extension, of their captions.

    What is in a part: (archive, its groups or None for all).
    """

    root: Path
    image_key: str | None = None
    caption_key: str | None = None
    limits: Limits = Limits()

    def __post_init__(self):
        if self.image_key:
            object.__setattr__(self, "image_key", _extension(self.image_key))

    def plan(self, files: list[str]) -> tuple[list[Part], list[LeftOut]]:
        """A part for each archive in `files`, several for a large one.

        Raises:
          ValueError: of all archives the first groups have no pictures or no captions, or lack what the keys name.
        """
        self._check_some(files)
        parts, left_out = [], []
        for file in files:
            if _size(self.root / file, file) < CUT:
                parts.append(Part(file, 0, (file, None)))
                continue
            groups, damage = index(self.root / file, file)
            left_out += damage
            chunks = [groups[i : i + PART] for i in range(0, len(groups), PART)]
            parts += [Part(f"{file}, {chunk[0][0]} and on", len(chunk), (file, chunk)) for chunk in chunks]
        return parts, left_out

    def read(self, part: Part) -> Iterator[Found | LeftOut]:
        file, groups = part.what
        damage: list[LeftOut] = []
        if groups is None:
            groups, damage = index(self.root / file, file)
        if groups:
            try:
                archive = input_files.open_file(self.root / file)
            except (OSError, input_files.NoFileError) as error:
                yield listing.unreadable(error, file)
                return
            with archive:
                groups = groups[::-1]
                while groups:  # each is let go of: there may be millions
                    key, members = groups.pop()
                    yield from self._of_group(archive, f"{file}:{key}", members)
        yield from damage

    def _of_group(self, archive: BinaryIO, where: str, members: dict) -> Iterator[Found | LeftOut]:
        try:
            chosen = self._pictures(members)
        except Unusable as error:
            name = next((e for e in members if _kind(e) in _PICTURES), next(iter(members)))
            yield error.of(f"{where}.{name}")
            return
        for extension in chosen:
            try:
                given = self._captions(archive, where, members, extension)
                self.limits.check_image(members[extension][1])
                found = Found(f"{where}.{extension}", _content(archive, members[extension]), given)
            except Unusable as error:
                yield error.of(f"{where}.{extension}")
            else:
                yield found

    def _pictures(self, members: dict) -> list[str]:
        """The extensions of the pictures in a group: one, or several that have captions of their own.

        Raises:
          Unusable: there is none, though there are captions or other pictures; or too many.
        """
        if self.image_key:
            images = [self.image_key] if self.image_key in members else []
        else:
            images = _chosen(members)
        if images:
            return images
        if other := next((extension for extension in members if _kind(extension) in _PICTURES), None):
            raise Unusable("no picture", f".{other}, but no .{self.image_key}")
        captioned = any(_kind(extension) in ("txt", "json") for extension in members)
        if captioned and (unread := next((e for e in members if f".{_kind(e)}" in listing.UNREAD), None)):
            raise Unusable("unknown format", f".{unread} is not read; convert it")
        if captioned:
            raise Unusable("caption without picture")
        return []

    def _captions(self, archive: BinaryIO, where: str, members: dict, extension: str) -> tuple[str, ...]:
        """The captions of a picture: in members with its whole stem, or with its group's."""
        text, fields = _beside(extension, "txt"), _beside(extension, "json")
        places, keys = (text, fields, "txt", "json"), CAPTIONS
        if self.caption_key:  # what was asked for goes before .txt files
            kind = _extension(self.caption_key)
            places, keys = (_beside(extension, kind), kind, fields, "json", text, "txt"), (self.caption_key,)
        there = [place for place in dict.fromkeys(places) if place in members]
        for place in there:
            if (size := members[place][1]) > text_files.MAX_BYTES:
                detail = f"{where}.{place}: {size} bytes, more than {text_files.MAX_BYTES}"
                raise Unusable("too large", detail)
            content = _content(archive, members[place])
            if _kind(place) == "json":
                found = captions.in_json(content, f"{where}.{place}", keys)
            else:
                found = captions.lines(content, f"{where}.{place}")
            if not captions.is_empty(list(found)):
                return found
        raise Unusable("no caption", f"none in {', '.join(there)}" if there else "neither .txt nor .json")

    def _check_some(self, files: list[str]) -> None:
        """Raises ValueError if of all archives that have any groups the first ones are not as expected."""
        first: ValueError | None = None
        for file in files:
            try:
                if groups := index(self.root / file, file, at_most=_LOOK)[0]:
                    self._check_groups(file, groups)
                    return
            except ValueError as error:
                first = first or error
        if first:
            raise first

    def _check_groups(self, file: str, groups: list[Group]) -> None:
        extensions = dict.fromkeys(extension for _, members in groups for extension in members)
        have = listing.told(dict.fromkeys(extensions, "file"))
        if self.image_key and self.image_key not in extensions:
            raise ValueError(
                f"--image-key names the extension of the pictures; {file} has no {self.image_key!r}. "
                f"It has: {have}."
            )
        if not self.image_key and not any(_kind(extension) in _PICTURES for extension in extensions):
            raise ValueError(
                f"The first members of {file} are no pictures; it has: {have}. "
                "Name the extension of the pictures with --image-key."
            )
        fields = _fields(self.root / file, groups)
        told = listing.told(fields) if fields else "no .json with fields"
        kinds = {_kind(extension) for extension in extensions}
        key = self.caption_key
        if key and not captions.columns(fields, (key,)) and _extension(key) not in kinds:
            raise ValueError(
                f"--caption-key names a field of .json, or an extension; {file} has no {key!r}. It has: "
                f"{told}; {have}."
            )
        if not key and "txt" not in kinds and not captions.columns(fields, CAPTIONS):
            raise ValueError(
                f"The first pictures of {file} have no captions, in .txt or in the field {' or '.join(CAPTIONS)} "
                f"of .json; it has: {have}; fields of .json: {told}. Name the right field, or the extension of the "
                "captions, with --caption-key."
            )


_PICTURES = tuple(ending.removeprefix(".") for ending in listing.PICTURES)


def _extension(key: str) -> str:
    """An extension as it is stored; people write .JPG too."""
    return key.lstrip(".").lower()


def _kind(extension: str) -> str:
    """The last part of an extension: "png" of "orig.png"."""
    return extension.rpartition(".")[2]


def _beside(extension: str, kind: str) -> str:
    """The extension of a file with the same whole stem: "v1.txt" for "v1.jpg"."""
    return extension[: -len(_kind(extension))] + kind


def _chosen(members: dict) -> list[str]:
    """The pictures in a group without a key: plain ones (.jpg), and dotted ones (.v1.jpg) with own captions.

    Dotted ones without are maps or versions of the plain one, if there is one. Raises Unusable if
    it cannot be told which is the picture.
    """
    plain = [extension for extension in members if extension in _PICTURES]
    dotted = [e for e in members if _kind(e) in _PICTURES and e not in plain]
    own = [e for e in dotted if {_beside(e, "txt"), _beside(e, "json")} & set(members)]
    if len(plain) > 1 or not (plain or own or len(dotted) < 2):
        names = ", ".join(plain or dotted)
        raise Unusable("duplicate key", f"several pictures, {names}; --image-key chooses one")
    # Where some dotted ones have captions, those without are pictures too, which lack theirs.
    return [*plain, *(own if plain else dotted)]


def _size(archive: Path, name: str) -> int:
    """Bytes of an archive; 0 if it may not be looked at, which shows again when it is read."""
    try:
        return archive.stat().st_size
    except OSError as error:
        listing.unreadable(error, name)
        return 0


def index(archive: Path, name: str, at_most: int | None = None) -> tuple[list[Group], list[LeftOut]]:
    """The groups of an archive in order of their first members, and what is damaged or there twice.

    Reads the headers of the members only. `at_most` stops after so many groups.
    """
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    left_out: list[LeftOut] = []
    taken = 0  # bytes of memory, about
    try:
        for member in _members(archive):
            # A Mac may write an accent as a letter of its own.
            folder, base = posixpath.split(unicodedata.normalize("NFC", member.name))
            folder = posixpath.normpath(folder)  # ./1.jpg belongs to 1.txt
            folder = "" if folder == "." else folder
            stem, _, extension = base.partition(".")
            if not stem or not extension:  # hidden, or no extension
                continue
            key, extension = posixpath.join(folder, stem), sys.intern(extension.lower())
            where = f"{name}:{member.name}"
            taken += _MEMBER + len(member.name)
            if taken > _INDEX:
                detail = f"the rest is not read: it has over {_INDEX // _MEMBER} members, or names that are too long"
                left_out.append(LeftOut(name, "too large", detail))
                break
            if member.issparse():
                detail = "stored with holes, as by tar --sparse: pack it without"
                left_out.append(LeftOut(where, "unreadable file", detail))
            elif not member.isreg():
                if not member.isdir() and _kind(extension) in _PICTURES:
                    left_out.append(LeftOut(where, "undecodable", "a link or device, not a file"))
                elif not member.isdir() and _kind(extension) in ("txt", "json"):
                    left_out.append(LeftOut(where, "unreadable file", "a link or device, not a file"))
            elif extension in groups.get(key, ()):
                left_out.append(LeftOut(where, "duplicate key", "the first one counts"))
            else:
                groups.setdefault(key, {})[extension] = member.offset_data, member.size
            if at_most and len(groups) > at_most:
                break
    except input_files.NoFileError as error:
        left_out.append(listing.unreadable(error, name))
    except OSError as error:
        if error.errno != errno.EINVAL:  # that is a place beyond all files, from a damaged header
            left_out.append(listing.unreadable(error, name))
        else:
            left_out.append(LeftOut(name, "damaged archive", f"the rest is not read: {error}"))
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        left_out.append(LeftOut(name, "damaged archive", f"the rest is not read: {error}"))
    return list(groups.items()), left_out


class _Headers:
    """An archive of which tarfile reads only headers: no more than _HEADER bytes for each member, whatever size the
    extended headers claim."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell = file.seek, file.tell
        self._file, self._left = file, _HEADER

    def start_member(self) -> None:
        self._left = _HEADER

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise tarfile.ReadError(f"headers of more than {_HEADER} bytes before byte {self.tell()}")
        return self._file.read(size)


def _members(archive: Path) -> Iterator[tarfile.TarInfo]:
    """The members that lie whole in the archive. Raises TarError or OSError where it is damaged."""
    with input_files.open_file(archive) as file:
        size, start = os.fstat(file.fileno()).st_size, 0
        while start is not None:  # archives may have been put together
            file.seek(start)
            headers = _Headers(file)
            with tarfile.open(fileobj=headers, mode="r:") as tar:
                last = start - 1
                while (member := tar.next()) is not None:
                    headers.start_member()
                    if member.size < 0 or tar.offset <= last:
                        raise tarfile.ReadError(f"{member.name} has a negative size")
                    last = tar.offset
                    tar.members.clear()  # it would keep them all
                    if len(tar.pax_headers) > _GLOBAL:
                        raise tarfile.ReadError(f"more than {_GLOBAL} headers for all members")
                    if member.isreg() and not member.issparse() and member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"{member.name} is cut off")
                    yield member
                end = tar.offset
            start = _after_end(file, end)


def _after_end(file: BinaryIO, end: int) -> int | None:
    """Where something follows the end mark of an archive; None if nothing does. Raises ReadError if there is no end
    mark, which tarfile does not tell from damage, or more zeros than an archive ends with."""
    file.seek(end)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise tarfile.ReadError(f"no header of a member and no end mark at byte {end}")
    place = end + tarfile.BLOCKSIZE
    while blocks := file.read(2**11 * tarfile.BLOCKSIZE):
        if rest := blocks.lstrip(b"\0"):
            return place + (len(blocks) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        place += len(blocks)
    if place - end > tarfile.RECORDSIZE + tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it ends in {place - end} zeros, as a download that is not complete does")
    return None


def _content(archive: BinaryIO, place: tuple[int, int]) -> bytes:
    archive.seek(place[0])
    return archive.read(place[1])


def _fields(archive: Path, groups: list[Group]) -> dict[str, str]:
    """The fields of the .json files in some groups and the types of their values."""
    fields: dict[str, str] = {}
    with input_files.open_file(archive) as file:
        for _, members in groups:
            for extension, (_, size) in members.items():
                if _kind(extension) != "json" or size > text_files.MAX_BYTES:
                    continue
                try:
                    row = captions.parse_json(text_files.decode(_content(file, members[extension])))
                except ValueError:
                    continue
                if isinstance(row, dict) and len(fields) < 1000:
                    fields.update({key: type(value).__name__ for key, value in row.items()})
    return fields
