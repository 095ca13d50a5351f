"""The files of an input: which lie there, which are pictures, and what could not be looked at."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from imagen_jax.data.quarantine import LeftOut

# Endings of pictures that are read; what is inside may be of another of these formats.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ".avif", ".jp2")
# Endings of pictures that are not read: beside a caption they are listed, not passed over.
UNREAD = (".heic", ".heif", ".ico", ".svg", ".psd", ".jxl", ".exr", ".tga", ".dng", ".cr2", ".nef", ".arw")
# What is listed if it is no file: a pipe, a socket, a link to nothing.
_MEANT = (*PICTURES, *UNREAD, ".txt", ".json", ".jsonl", ".csv", ".tar", ".parquet")
_OWN_PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")
# What belongs to one file or folder; any other error, as of a disk or a network, is no property of the input.
_OWN = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


class NoFileError(ValueError):
    """The path is no regular file; `kind` is what it is, such as "a pipe"."""

    def __init__(self, kind: str):
        super().__init__(f"it is {kind}, not a file")
        self.kind = kind


class TooLargeError(ValueError):
    """A file has more bytes than are read of it."""


def ending(file: str) -> str:
    """The lower-case ending of a name, with its dot."""
    return PurePosixPath(file).suffix.lower()


def pictures_among(files: Iterable[str]) -> list[str]:
    return [file for file in files if ending(file) in PICTURES]


def unreadable(error: OSError | NoFileError, file: str) -> LeftOut:
    """What is left out where something may not be read, is gone or no file. Raises any other error again."""
    if isinstance(error, NoFileError):
        return LeftOut(file, "unreadable file", str(error))
    if error.errno in _OWN:
        return LeftOut(file, "unreadable file", error.strerror or "")
    raise error


def read_file(path: Path, most: int, *, pipes: bool = False) -> bytes:
    """Return the bytes of a file. Its size is checked first; what is no regular file is refused, not waited for.

    Args:
      path: a file or a link to one.
      most: bytes that it may have.
      pipes: whether a pipe that this process has open already, as /dev/stdin or /dev/fd/63, is read as well.

    Raises:
      NoFileError, TooLargeError, OSError: one line without the path.
    """
    with open_file(path, pipes=pipes) as file:
        if (size := os.fstat(file.fileno()).st_size) > most:
            raise TooLargeError(f"{size} bytes, more than {most}")
        content = file.read(most + 1)  # files of /proc have more than their size says
    if len(content) > most:
        raise TooLargeError(f"more than {most} bytes")
    return content


def read_given(option: str, path: Path, most: int, what: str, fix: str, *, pipes: bool = False) -> bytes:
    """The bytes of a file that a user names with an option.

    Args:
      option: how the user named it, such as "--image".
      path, most, pipes: as for `read_file`.
      what: what the option takes, such as "a picture file".
      fix: what to do about one that cannot be used, such as "give a file".

    Raises:
      ValueError: one line that names the option: it does not exist, is no file, has too many bytes, or cannot be read.
    """
    try:
        return read_file(path, most, pipes=pipes)
    except NoFileError as error:
        reason = f"is {error.kind}"
    except TooLargeError as error:
        raise ValueError(f"{option} must have at most {most} bytes; {path} has {error}: give a smaller one.") from error
    except FileNotFoundError:
        reason = "does not exist"
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
    raise ValueError(f"{option} must be {what}; {path} {reason}: {fix}.")


def open_file(path: Path, *, pipes: bool = False) -> BinaryIO:
    """A file open for reading; the arguments and errors are those of `read_file`."""
    kind = kind_of(os.stat(path).st_mode)
    own = pipes and kind == "a pipe" and str(path).startswith(_OWN_PIPES)
    if kind != "a file" and not own:
        raise NoFileError(kind)
    # Without blocking: it may have become a pipe since, which waits for somebody to write into it.
    return os.fdopen(os.open(path, os.O_RDONLY | (0 if own else getattr(os, "O_NONBLOCK", 0))), "rb")


def kind_of(mode: int) -> str:
    """What lies under a name, from its mode as `stat` gives it: "a file", "a folder", "a pipe"."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")


def told(kinds: Mapping[str, object]) -> str:
    """Columns, fields or members and what they are, for a message: "caption (string), n (int64)"."""
    have = ", ".join(f"{name[:100]} ({kind})" for name, kind in itertools.islice(kinds.items(), 50))
    return have + (", ..." if len(kinds) > 50 else "") or "none"


def visible_files(root: Path) -> tuple[list[str], list[LeftOut]]:
    """All files under a folder by their paths in it, with "/", sorted, and what cannot be looked at.

    What begins with a dot is not there. Links to folders are followed, and each folder is read once,
    under its own name if it has one here; so links that lead back into the folder add nothing.

    Raises:
      OSError: the folder itself cannot be read, or the disk or network fails.
    """
    seen = {_identity(folder) for folder in root.resolve().parents}
    folders, links = [""], []
    files, left_out = [], []
    while folders or links:
        folder = (folders or links).pop()
        try:
            if (identity := _identity(root / folder)) in seen:
                continue
            seen.add(identity)
            entries = sorted(_entries(root / folder), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            if not folder:
                raise OSError(f"The folder {root} cannot be read: {error.strerror}.") from error
            left_out.append(unreadable(error, folder))
            continue
        for entry in entries:
            path = f"{folder}/{entry.name}" if folder else entry.name
            try:
                if entry.is_dir():
                    (links if entry.is_symlink() else folders).append(path)
                elif entry.is_file():
                    files.append(path)
                elif ending(path) in _MEANT:
                    left_out.append(LeftOut(path, "unreadable file", _no_file(entry)))
            except OSError as error:
                left_out.append(unreadable(error, path))
    return sorted(files), sorted(left_out, key=lambda row: row.file)


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _no_file(entry: os.DirEntry) -> str:
    """What an entry is that is neither a file nor a folder."""
    try:
        return f"it is {kind_of(entry.stat().st_mode)}, not a file"
    except FileNotFoundError:
        return "a link to what is not there"


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def stamp(root: Path, files: Iterable[str]) -> str:
    """A hash of the names, sizes and times of files: it changes when one of them does."""
    digest = hashlib.sha256()
    for file in files:
        try:
            found = (root / file).stat()
            line = f"{file}\0{found.st_size}\0{found.st_mtime_ns}\n"
        except OSError as error:
            unreadable(error, file)
            line = f"{file}\0cannot be looked at\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
