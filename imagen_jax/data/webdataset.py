"""Captioned pictures in .tar archives, as WebDataset and img2dataset write them.

Members belong together if their paths agree up to the first dot of the base name: a/1.jpg, a/1.txt
and a/1.json. Of each such group one member is the picture, by its extension; the captions are the
lines of .txt, or a field of .json where there is no .txt. Groups need not lie together in the file.
"""

from __future__ import annotations

import dataclasses
import json
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from imagen_jax.data import pictures
from imagen_jax.data.parts import Part
from imagen_jax.data.pictures import CAPTIONS, PICTURES, Found
from imagen_jax.data.quarantine import LeftOut, Unusable

CUT = 2**30  # bytes of an archive from which on it is cut into several parts
PART = 1024  # pictures of a cut archive
_LOOK = 64  # groups that are looked at before any work

# A group of members by their extensions: (key, {extension: (offset, size) in the archive})
Group = tuple[str, dict[str, tuple[int, int]]]


@dataclasses.dataclass(frozen=True)
class Archives:
    """Archives in a folder. `image_key` is the extension of the pictures, `caption_key` the field of .json.

    What is in a part: (archive, its groups or None for all).
    """

    root: Path
    image_key: str | None = None
    caption_key: str | None = None

    def plan(self, files: list[str]) -> tuple[list[Part], list[LeftOut]]:
        """A part for each archive in `files`, several for a large one.

        Raises:
          ValueError: the first archive has not the extension or field that was named.
        """
        self._check_keys(files)
        parts, left_out = [], []
        for file in files:
            if (self.root / file).stat().st_size < CUT:
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
            with (self.root / file).open("rb") as archive:
                for key, members in groups:
                    try:
                        found = self._found(archive, f"{file}:{key}", members)
                    except Unusable as error:
                        found = error.of(self._name(f"{file}:{key}", members))
                    if found is not None:
                        yield found
        yield from damage

    def _found(self, archive: BinaryIO, where: str, members: dict) -> Found | None:
        images = self._images(members)
        if not images:
            if {"txt", "json"} & set(members):
                raise Unusable("caption without picture")
            return None
        if len(images) > 1:
            names = ", ".join(images)
            raise Unusable("duplicate key", f"several pictures, {names}; --image-key chooses one")
        if "txt" in members:
            captions = pictures.lines(_content(archive, members["txt"]), f"{where}.txt")
        elif "json" in members:
            keys = (self.caption_key,) if self.caption_key else CAPTIONS
            captions = pictures.json_caption(_content(archive, members["json"]), f"{where}.json", keys)
        else:
            raise Unusable("no caption", "neither .txt nor .json")
        return Found(f"{where}.{images[0]}", _content(archive, members[images[0]]), captions)

    def _images(self, members: dict) -> list[str]:
        if self.image_key:
            return [self.image_key] if self.image_key in members else []
        return [extension for extension in members if f".{extension}" in PICTURES]

    def _name(self, where: str, members: dict) -> str:
        return f"{where}.{(self._images(members) or list(members))[0]}"

    def _check_keys(self, files: list[str]) -> None:
        """Raises ValueError if the first groups of the first archive lack what the keys name."""
        if not (self.image_key or self.caption_key):
            return
        groups = index(self.root / files[0], files[0], at_most=_LOOK)[0]
        extensions = dict.fromkeys(extension for _, members in groups for extension in members)
        if groups and self.image_key and self.image_key not in extensions:
            have = ", ".join(f"{extension} (file)" for extension in extensions)
            raise ValueError(
                f"--image-key names the extension of the pictures; {files[0]} has no {self.image_key!r}. "
                f"It has: {have}."
            )
        if not self.caption_key:
            return
        if "txt" in extensions:
            raise ValueError(
                f"--caption-key {self.caption_key} has no effect: {files[0]} has captions in .txt files; "
                "remove it."
            )
        fields = _fields(self.root / files[0], groups)
        if groups and self.caption_key not in fields:
            have = ", ".join(f"{name} ({kind})" for name, kind in fields.items()) or "no .json with fields"
            raise ValueError(
                f"--caption-key names a field of .json; {files[0]} has no {self.caption_key!r}. It has: {have}."
            )


def index(archive: Path, name: str, at_most: int | None = None) -> tuple[list[Group], list[LeftOut]]:
    """The groups of an archive in order of their first members, and what is damaged or there twice.

    Reads the headers of the members only. `at_most` stops after so many groups.
    """
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    left_out: list[LeftOut] = []
    try:
        for member in _members(archive):
            folder, base = posixpath.split(member.name)
            stem, _, extension = base.partition(".")
            if not stem or not extension:  # hidden, or no extension
                continue
            key, extension = posixpath.join(folder, stem), extension.lower()
            if not member.isreg():
                if not member.isdir() and f".{extension}" in PICTURES:
                    left_out.append(LeftOut(f"{name}:{member.name}", "undecodable", "a link, not a file"))
            elif extension in groups.get(key, ()):
                left_out.append(LeftOut(f"{name}:{member.name}", "duplicate key", "the first one counts"))
            else:
                groups.setdefault(key, {})[extension] = member.offset_data, member.size
            if at_most and len(groups) > at_most:
                break
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        left_out.append(LeftOut(name, "damaged archive", f"the rest is not read: {error}"))
    return list(groups.items()), left_out


def _members(archive: Path) -> Iterator[tarfile.TarInfo]:
    """The members that lie whole in the archive. Raises TarError or OSError where it is damaged."""
    size = archive.stat().st_size
    with tarfile.open(archive, "r:") as tar:
        while (member := tar.next()) is not None:
            tar.members.clear()  # it would keep them all
            if member.isreg() and member.offset_data + member.size > size:
                raise tarfile.ReadError(f"{member.name} is cut off")
            yield member
        end = tar.offset
    with archive.open("rb") as file:  # tarfile takes damage for the end
        file.seek(end)
        block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE or block.strip(b"\0"):
        raise tarfile.ReadError(f"no header of a member and no end mark at byte {end}")


def _content(archive: BinaryIO, place: tuple[int, int]) -> bytes:
    archive.seek(place[0])
    return archive.read(place[1])


def _fields(archive: Path, groups: list[Group]) -> dict[str, str]:
    """The fields of the .json files in some groups and the types of their values."""
    fields: dict[str, str] = {}
    with archive.open("rb") as file:
        for _, members in groups:
            if "json" in members:
                try:
                    row = json.loads(_content(file, members["json"]))
                except (ValueError, RecursionError):
                    continue
                if isinstance(row, dict):
                    fields.update({key: type(value).__name__ for key, value in row.items()})
    return fields
