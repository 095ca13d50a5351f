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
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from imagen_jax.checks import Verbatim, require
from imagen_jax.prepare import captions, listing, tar_index, text_files
from imagen_jax.prepare.captions import CAPTIONS
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.parts import Part
from imagen_jax.prepare.pictures import Found
from imagen_jax.prepare.quarantine import LeftOut, Unusable
from imagen_jax.storage import input_files

CUT = 2**30  # bytes of an archive from which on it is cut into several parts
PART = 1024  # pictures in a part of a cut archive
_LOOK = 64  # groups that are checked before any work


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

    @property
    def _image(self) -> str | None:
        """The extension of the pictures, in the form of the index."""
        return self.image_key and _extension(self.image_key)

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
            groups, damage = tar_index.index(self.root / file, file)
            left_out += damage
            chunks = [groups[i : i + PART] for i in range(0, len(groups), PART)]
            parts += [Part(f"{file}, {chunk[0][0]} and on", len(chunk), (file, chunk)) for chunk in chunks]
        return parts, left_out

    def read(self, part: Part) -> Iterator[Found | LeftOut]:
        file, groups = part.what
        damage: list[LeftOut] = []
        if groups is None:
            groups, damage = tar_index.index(self.root / file, file)
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
            yield error.of(f"{where}.{_first(members, tar_index.PICTURES) or next(iter(members))}")
            return
        for extension in chosen:
            try:
                given = self._captions(archive, where, members, extension)
                self.limits.check_image(members[extension][1])
                found = Found(f"{where}.{extension}", tar_index.content(archive, members[extension]), given)
            except Unusable as error:
                yield error.of(f"{where}.{extension}")
            else:
                yield found

    def _pictures(self, members: dict) -> list[str]:
        """Return the extensions of the pictures in a group: one, or several that have their own captions.

        Raises:
          Unusable: there is no picture, although there are captions or other pictures; or there are too many.
        """
        if self._image in members:
            return [self._image]
        if not self._image and (images := _chosen(members)):
            return images
        if other := _first(members, tar_index.PICTURES):
            raise Unusable("no picture", f".{other}, but no .{self._image}")
        if not _first(members, ("txt", "json")):
            return []
        if unread := _first(members, tar_index.UNREAD):
            raise Unusable("unknown format", f".{unread} is not read; convert it")
        raise Unusable("caption without picture")

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
            if found := captions.read(tar_index.content(archive, members[place]), f"{where}.{place}", keys):
                return found
        raise Unusable("no caption", f"none in {', '.join(there)}" if there else "neither .txt nor .json")

    def _check_some(self, files: list[str]) -> None:
        """Raise ValueError if no archive that has groups begins with what is expected; at least one must be valid."""
        errors = []
        for file in files:
            try:
                if groups := tar_index.index(self.root / file, file, at_most=_LOOK)[0]:
                    return self._check_groups(file, groups)
            except ValueError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _check_groups(self, file: str, groups: list[tar_index.Group]) -> None:
        extensions = dict.fromkeys(extension for _, members in groups for extension in members)
        kinds = {tar_index.kind_of(extension) for extension in extensions}
        have = Verbatim(listing.told(dict.fromkeys(extensions, "file")))
        if self._image:
            rule = f"be an extension in {file}"
            require(self._image in extensions, "--image-key", rule, self._image, f"it has {have}")
        else:
            fix = "name the extension of the pictures with --image-key"
            rule = "have pictures among its first members"
            require(bool(kinds & set(tar_index.PICTURES)), file, rule, have, fix)
        fields = _fields(self.root / file, groups)
        have = Verbatim(f"{have}; fields of .json: {listing.told(fields) if fields else 'no .json with fields'}")
        key = self.caption_key
        is_there = bool(captions.columns(fields, (key,) if key else CAPTIONS))
        if key:
            rule = f"be a field of .json or an extension in {file}"
            require(is_there or _extension(key) in kinds, "--caption-key", rule, key, f"it has {have}")
        else:
            rule = f"have captions beside its first pictures, in .txt or in {' or '.join(CAPTIONS)} of .json"
            fix = "name the field, or the extension of the captions, with --caption-key"
            require(is_there or "txt" in kinds, file, rule, have, fix)


def _extension(key: str) -> str:
    """Return an extension in lower case without a leading dot."""
    return key.lstrip(".").lower()


def _first(members: dict, kinds: tuple[str, ...]) -> str | None:
    """Return the first extension of one of these kinds."""
    return next((extension for extension in members if tar_index.kind_of(extension) in kinds), None)


def _beside(extension: str, kind: str) -> str:
    """Return the extension of a file with the same whole stem: "v1.txt" for "v1.jpg"."""
    return extension[: -len(tar_index.kind_of(extension))] + kind


def _chosen(members: dict) -> list[str]:
    """Return the extensions of the pictures in a group: plain ones (.jpg), and dotted ones (.v1.jpg) with own captions.

    Dotted ones without captions are maps or versions of the plain one, if there is one.

    Raises:
      Unusable: the picture cannot be determined.
    """
    plain = [extension for extension in members if extension in tar_index.PICTURES]
    dotted = [e for e in members if tar_index.kind_of(e) in tar_index.PICTURES and e not in plain]
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


def _fields(archive: Path, groups: list[tar_index.Group]) -> dict[str, str]:
    """Return the fields of the .json files in some groups and the types of their values."""
    fields: dict[str, str] = {}
    members = [member for _, members in groups for member in members.items()]
    with input_files.open_file(archive) as file:
        for extension, place in members:
            is_json = tar_index.kind_of(extension) == "json" and place[1] <= text_files.MAX_BYTES
            if is_json and len(fields) < 1000:
                with contextlib.suppress(ValueError, AttributeError):  # AttributeError: it is no object
                    row = captions.parse_json(text_files.decode(tar_index.content(file, place)))
                    fields.update({key: type(value).__name__ for key, value in row.items()})
    return fields
