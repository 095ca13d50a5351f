"""Captioned pictures in .tar archives, as WebDataset and img2dataset write them.

Members belong together if their paths agree up to the first dot of the base name: a/1.jpg, a/1.txt and a/1.json. One
member of such a group is the picture, by its extension; the captions are the lines of .txt, or a field of .json where
.txt has none. Names may have more dots: a/1.v2.jpg with a/1.v2.txt is a captioned picture as well. The members of a
group need not be adjacent.

The library `datasets` was tried instead: it streams members in order and stops at the first one that it cannot parse,
so it loses the sound pictures of 33 of 37 damaged or unusual archives in the tests, and has no limit of memory.
"""

from __future__ import annotations

import contextlib
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
PART = 1024  # pictures in a part of a cut archive
_LOOK = 64  # groups that are checked before any work
_HEADER = 2**20  # bytes of the headers of one member, including extended ones
_GLOBAL = 100  # extended headers that apply to all following members
_MEMBER = 256  # approximate bytes of memory of a member in the index, without its name
_INDEX = 2**29  # bytes of memory of the index of an archive: about two million members

# A group of members by their extensions: (key, {extension: (offset, size) in the archive})
Group = tuple[str, dict[str, tuple[int, int]]]


@dataclasses.dataclass(frozen=True)
class Archives:
    """Archives in a folder. `image_key` is the extension of the pictures, `caption_key` the field of .json, or the
    extension, of their captions.

    Contents of a part: (archive, its groups or None for all).
    """

    root: Path
    image_key: str | None = None
    caption_key: str | None = None
    limits: Limits = Limits()

    def __post_init__(self):
        if self.image_key:
            object.__setattr__(self, "image_key", _extension(self.image_key))

    def plan(self, files: list[str]) -> tuple[list[Part], list[LeftOut]]:
        """Return a part for each archive in `files`, several for a large one; and what is left out.

        Raises:
          ValueError: in every archive, the first groups have no pictures or captions, or none under the keys.
        """
        self._check_some(files)
        parts, left_out = [], []
        for file in files:
            if _size(self.root / file) < CUT:
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
                while groups:  # frees each group after use: there may be millions
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
        """Return the extensions of the pictures in a group: one, or several that have their own captions.

        Raises:
          Unusable: there is no picture, although there are captions or other pictures; or there are too many.
        """
        if (
            images := [key for key in (self.image_key,) if key in members]
            if self.image_key
            else _chosen(members)
        ):
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
        """Return the captions of a picture, from members with its whole stem or with its group's."""
        text, fields = _beside(extension, "txt"), _beside(extension, "json")
        places, keys = (text, fields, "txt", "json"), CAPTIONS
        if self.caption_key:  # has priority over .txt files
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
        """Raise ValueError if no archive that has groups begins with what is expected; at least one must be valid."""
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
        kinds = {_kind(extension) for extension in extensions}
        have = listing.told(dict.fromkeys(extensions, "file"))
        if self.image_key and self.image_key not in extensions:
            raise ValueError(
                f"--image-key must be an extension in {file}; got {self.image_key!r}: it has {have}."
            )
        if not self.image_key and not kinds & set(_PICTURES):
            raise ValueError(
                f"{file} must have pictures among its first members; got {have}: "
                "name the extension of the pictures with --image-key."
            )
        fields = _fields(self.root / file, groups)
        have += f"; fields of .json: {listing.told(fields) if fields else 'no .json with fields'}"
        key = self.caption_key
        if key and not captions.columns(fields, (key,)) and _extension(key) not in kinds:
            raise ValueError(
                f"--caption-key must be a field of .json or an extension in {file}; got {key!r}: it has {have}."
            )
        if not key and "txt" not in kinds and not captions.columns(fields, CAPTIONS):
            raise ValueError(
                f"{file} must have captions beside its first pictures, in .txt or in {' or '.join(CAPTIONS)} of .json; "
                f"got {have}: name the field, or the extension of the captions, with --caption-key."
            )


_PICTURES = tuple(ending.removeprefix(".") for ending in listing.PICTURES)


def _extension(key: str) -> str:
    """Return an extension in lower case without a leading dot."""
    return key.lstrip(".").lower()


def _kind(extension: str) -> str:
    """Return the last part of an extension: "png" of "orig.png"."""
    return extension.rpartition(".")[2]


def _beside(extension: str, kind: str) -> str:
    """Return the extension of a file with the same whole stem: "v1.txt" for "v1.jpg"."""
    return extension[: -len(_kind(extension))] + kind


def _chosen(members: dict) -> list[str]:
    """Return the extensions of the pictures in a group: plain ones (.jpg), and dotted ones (.v1.jpg) with own captions.

    Dotted ones without captions are maps or versions of the plain one, if there is one.

    Raises:
      Unusable: the picture cannot be determined.
    """
    plain = [extension for extension in members if extension in _PICTURES]
    dotted = [e for e in members if _kind(e) in _PICTURES and e not in plain]
    own = [e for e in dotted if {_beside(e, "txt"), _beside(e, "json")} & set(members)]
    if len(plain) > 1 or not (plain or own or len(dotted) < 2):
        names = ", ".join(plain or dotted)
        raise Unusable("duplicate key", f"several pictures, {names}; --image-key chooses one")
    # Where some dotted ones have captions, the others are pictures without a caption.
    return [*plain, *(own if plain else dotted)]


def _size(archive: Path) -> int:
    """Return the bytes of an archive; 0 if it cannot be accessed, which is listed when it is read."""
    try:
        return archive.stat().st_size
    except OSError as error:
        listing.unreadable(error, archive.name)
        return 0


def index(archive: Path, name: str, at_most: int | None = None) -> tuple[list[Group], list[LeftOut]]:
    """Return the groups of an archive in order of their first members, and what is damaged or duplicate.

    Reads only the headers of the members, and stops after `at_most` groups.
    """
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    left_out: list[LeftOut] = []
    taken = 0  # approximate bytes of memory
    try:
        for member in _members(archive):
            # macOS may store an accent as a separate character.
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
                left_out.append(
                    LeftOut(
                        where, "unreadable file", "stored with holes, as by tar --sparse: pack it without"
                    )
                )
            elif not member.isreg():
                if not member.isdir() and (kind := _kind(extension)) in (*_PICTURES, "txt", "json"):
                    reason = "undecodable" if kind in _PICTURES else "unreadable file"
                    left_out.append(LeftOut(where, reason, "a link or device, not a file"))
            elif extension in groups.get(key, ()):
                left_out.append(LeftOut(where, "duplicate key", "the first one counts"))
            else:
                groups.setdefault(key, {})[extension] = member.offset_data, member.size
            if at_most and len(groups) > at_most:
                break
    except (OSError, tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        # EINVAL is an offset that no file can have, from a damaged header.
        if (
            isinstance(error, OSError | input_files.NoFileError)
            and getattr(error, "errno", None) != errno.EINVAL
        ):
            left_out.append(listing.unreadable(error, name))
        else:
            left_out.append(LeftOut(name, "damaged archive", f"the rest is not read: {error}"))
    return list(groups.items()), left_out


class _Headers:
    """A file of which tarfile reads at most _HEADER bytes for each member, whatever the extended headers claim."""

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
    """Yield the members that are completely in the archive; raise TarError or OSError where it is damaged."""
    with input_files.open_file(archive) as file:
        size, start = os.fstat(file.fileno()).st_size, 0
        while start is not None:  # archives may be concatenated
            file.seek(start)
            headers = _Headers(file)
            with tarfile.open(fileobj=headers, mode="r:") as tar:
                last = start - 1
                while (member := tar.next()) is not None:
                    headers.start_member()
                    if member.size < 0 or tar.offset <= last:
                        raise tarfile.ReadError(f"{member.name} has a negative size")
                    last = tar.offset
                    tar.members.clear()  # frees their memory
                    if len(tar.pax_headers) > _GLOBAL:
                        raise tarfile.ReadError(f"more than {_GLOBAL} headers for all members")
                    if member.isreg() and not member.issparse() and member.offset_data + member.size > size:
                        raise tarfile.ReadError(f"{member.name} is cut off")
                    yield member
                end = tar.offset
            start = _after_end(file, end)


def _after_end(file: BinaryIO, end: int) -> int | None:
    """Return the offset of what follows the end mark of an archive, None if nothing does.

    Raises:
      tarfile.ReadError: there is no end mark, or longer padding than the tar format allows. tarfile ignores both.
    """
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
    """Return the fields of the .json files in some groups and the types of their values."""
    fields: dict[str, str] = {}
    places = [
        place for _, members in groups for extension, place in members.items() if _kind(extension) == "json"
    ]
    with input_files.open_file(archive) as file:
        for place in places:
            with contextlib.suppress(ValueError):
                is_read = place[1] <= text_files.MAX_BYTES and len(fields) < 1000
                row = captions.parse_json(text_files.decode(_content(file, place))) if is_read else None
                if isinstance(row, dict):
                    fields.update({key: type(value).__name__ for key, value in row.items()})
    return fields
