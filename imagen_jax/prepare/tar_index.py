"""Index of a .tar archive: its members in groups, from the headers alone and within limits."""

from __future__ import annotations

import errno
import os
import posixpath
import sys
import tarfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from imagen_jax.prepare import listing
from imagen_jax.prepare.quarantine import LeftOut
from imagen_jax.storage import input_files

_HEADER = 2**20  # bytes of the headers of one member, including extended ones
_GLOBAL = 100  # extended headers that apply to all following members
_MEMBER = 256  # approximate bytes of memory of a member in the index, without its name
_INDEX = 2**29  # bytes of memory of the index of an archive: about two million members
PICTURES = tuple(ending.removeprefix(".") for ending in listing.PICTURES)
UNREAD = tuple(ending.removeprefix(".") for ending in listing.UNREAD)

# A group of members by their extensions: (key, {extension: (offset, size) in the archive})
Group = tuple[str, dict[str, tuple[int, int]]]


def kind_of(extension: str) -> str:
    """Return the last part of an extension: "png" of "orig.png"."""
    return extension.rpartition(".")[2]


def index(archive: Path, name: str, at_most: int | None = None) -> tuple[list[Group], list[LeftOut]]:
    """Return the groups of an archive in order of their first members, and what is damaged or duplicate.

    Reads only the headers of the members, and stops after `at_most` groups.
    """
    groups: dict[str, dict[str, tuple[int, int]]] = {}
    left_out: list[LeftOut] = []
    taken = 0  # approximate bytes of memory
    try:
        for member in _members(archive):
            key, extension = _key_and_extension(member.name)
            if not extension:
                continue
            where, kind = f"{name}:{member.name}", kind_of(extension)
            taken += _MEMBER + len(member.name)
            if taken > _INDEX:
                detail = f"the rest is not read: it has over {_INDEX // _MEMBER} members, or names that are too long"
                left_out.append(LeftOut(name, "too large", detail))
                break
            if member.issparse():
                detail = "stored with holes, as by tar --sparse: pack it without"
                left_out.append(LeftOut(where, "unreadable file", detail))
            elif not member.isreg():
                if not member.isdir() and kind in (*PICTURES, "txt", "json"):
                    reason = "undecodable" if kind in PICTURES else "unreadable file"
                    left_out.append(LeftOut(where, reason, "a link or device, not a file"))
            elif extension in groups.get(key, ()):
                left_out.append(LeftOut(where, "duplicate key", "the first one counts"))
            else:
                groups.setdefault(key, {})[extension] = member.offset_data, member.size
            if at_most and len(groups) > at_most:
                break
    except (OSError, tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        is_access = isinstance(error, OSError | input_files.NoFileError)
        # EINVAL is an offset that no file can have, from a damaged header.
        if is_access and getattr(error, "errno", None) != errno.EINVAL:
            left_out.append(listing.unreadable(error, name))
        else:
            left_out.append(LeftOut(name, "damaged archive", f"the rest is not read: {error}"))
    return list(groups.items()), left_out


def _key_and_extension(name: str) -> tuple[str, str]:
    """Return the key of a member's group, and its extension: "" for hidden files and those without one."""
    name = unicodedata.normalize("NFC", name)  # macOS may store an accent as a separate character
    folder, base = posixpath.split(posixpath.normpath(name))  # ./1.jpg belongs to 1.txt
    stem, _, extension = base.partition(".")
    return posixpath.join(folder, stem), sys.intern(extension.lower()) if stem else ""


class _Headers:
    """A file of which tarfile reads at most `left` bytes, whatever the extended headers of a member claim."""

    def __init__(self, file: BinaryIO):
        self.seek, self.tell, self.left, self._file = file.seek, file.tell, _HEADER, file

    def read(self, size: int) -> bytes:
        self.left -= size
        if self.left < 0:
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
                    headers.left = _HEADER
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


def content(archive: BinaryIO, place: tuple[int, int]) -> bytes:
    """Return the bytes of a member at (offset, size)."""
    archive.seek(place[0])
    return archive.read(place[1])
