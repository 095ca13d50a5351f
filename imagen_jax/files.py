"""Files that appear whole or not at all: the one way in which this package writes a file.

The content goes to a temporary file in the same folder, onto the disk, and only then to its name. A full disk, an
exception or a signal in between leaves what stood under the name before, and no temporary file; a power cut or a
SIGKILL may leave a `.tmp-*`, never half a file under a final name.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO


def write(path: str | os.PathLike, content: bytes | str) -> None:
    """Writes a file, in place of the one that is there; a str as UTF-8.

    Raises:
      OSError: one line that names the file and the reason; the file is as it was before.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: str | os.PathLike, content: Any, *, indent: int | None = None) -> None:
    """Writes a JSON file as `write` does, with a line break at its end."""
    write(path, json.dumps(content, indent=indent) + "\n")


def write_new(path: str | os.PathLike, content: bytes | str) -> Path:
    """Writes NAME.EXT, or the first of NAME-2.EXT, NAME-3.EXT, ... that does not exist.

    No file is ever replaced, also if several processes write to one folder at the same time.

    Returns:
      The path that was written.

    Raises:
      OSError: as for `write`.
    """
    path, number = Path(path), 1
    free = path
    while not create(free, content):
        while os.path.lexists(free):
            number += 1
            free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def create(path: str | os.PathLike, content: bytes | str) -> bool:
    """Writes a file unless something of this name exists already; returns whether it did.

    Of several processes that create one file at the same time, exactly one succeeds.

    Raises:
      OSError: as for `write`.
    """
    if os.path.lexists(path):
        return False
    with _temporary(Path(path)) as (temporary, file):
        file.write(content.encode() if isinstance(content, str) else content)
        _finish(file)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return _claim(temporary, path)
        sync_directory(Path(path).parent)
    return True


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """An open file whose content takes the place of `path` when the block ends without an exception.

    A symbolic link is followed: the file that it leads to is replaced.

    Raises:
      OSError: as for `write`.
    """
    target = Path(os.path.realpath(path))
    # A link that is left is one to itself. Replacing a device as root would remove it from the system.
    if os.path.lexists(target) and not stat.S_ISREG(target.lstat().st_mode):
        raise OSError(f"{path} cannot be written: it is there already and no regular file.")
    with _temporary(target) as (temporary, file):
        yield file
        _finish(file)
        os.replace(temporary, target)
        sync_directory(target.parent)


def sync(path: Path) -> None:
    """Waits until a file's content is on the disk: what is called finished survives a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """The same for the names in a directory, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new file in the folder of `target`, removed at the end if it still has its name."""
    temporary = target.with_name(f".tmp-{uuid.uuid4().hex}")  # its length does not depend on the target's
    try:
        with temporary.open("xb") as file:
            yield temporary, file
    except OSError as error:
        # Errors of a file at hand name no file, those of the temporary name one that nobody knows.
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        told = type(error)(f"{target} cannot be written: {error.strerror}.")
        told.errno = error.errno
        raise told from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _finish(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _claim(temporary: Path, path: str | os.PathLike) -> bool:
    """Renames to a name that this process alone has made; an empty file has it until then."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    try:
        os.replace(temporary, path)
    except BaseException:
        os.unlink(path)
        raise
    return True
