"""The files of an input: which there are, which are pictures, and which cannot be accessed."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from imagen_jax.prepare.quarantine import LeftOut
from imagen_jax.storage.input_files import OWN_ERRORS, NoFileError, kind_of

# Endings of pictures that are read; the content may be in another of these formats.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif", ".avif", ".jp2")
# Endings of pictures that are not read; they are listed if they have a caption.
UNREAD = (".heic", ".heif", ".ico", ".svg", ".psd", ".jxl", ".exr", ".tga", ".dng", ".cr2", ".nef", ".arw")
# Names that are listed if they are not files but pipes, sockets or broken links.
_MEANT = (*PICTURES, *UNREAD, ".txt", ".json", ".jsonl", ".csv", ".tar", ".parquet")


def ending(file: str) -> str:
    """Return the lower-case ending of a name, with its dot."""
    return PurePosixPath(file).suffix.lower()


def pictures_among(files: Iterable[str]) -> list[str]:
    return [file for file in files if ending(file) in PICTURES]


def unreadable(error: OSError | NoFileError, file: str) -> LeftOut:
    """Return what is left out for a file that is not accessible, missing or irregular; raise any other error again."""
    if isinstance(error, NoFileError):
        return LeftOut(file, "unreadable file", str(error))
    if error.errno in OWN_ERRORS:
        return LeftOut(file, "unreadable file", error.strerror or "")
    raise error


def told(kinds: Mapping[str, object]) -> str:
    """Format columns, fields or members and their types for a message: "caption (string), n (int64)"."""
    have = ", ".join(f"{name[:100]} ({kind})" for name, kind in itertools.islice(kinds.items(), 50))
    return have + (", ..." if len(kinds) > 50 else "") or "none"


def visible_files(root: Path) -> tuple[list[str], list[LeftOut]]:
    """Return the sorted paths of all files in a folder and its sub-folders, with "/", and what cannot be accessed.

    Names that begin with a dot are ignored. Links to folders are followed, and each folder is read once, under its own
    name if it is in this folder; so links that lead back into the folder add nothing.

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
                    raise NoFileError(kind_of(entry.stat().st_mode))
            except FileNotFoundError:
                left_out.append(LeftOut(path, "unreadable file", "a link that leads nowhere"))
            except (OSError, NoFileError) as error:
                left_out.append(unreadable(error, path))
    return sorted(files), sorted(left_out, key=lambda row: row.file)


def _entries(folder: Path) -> Iterator[os.DirEntry]:
    with os.scandir(folder) as entries:
        yield from (entry for entry in entries if not entry.name.startswith("."))


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def stamp(root: Path, files: Iterable[str]) -> str:
    """Return a hash of the names, sizes and modification times of files."""
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
