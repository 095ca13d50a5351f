"""Atomic writing of files; every file of this package is written by it.

The content is written to a temporary file in the same folder, synced to disk, and then renamed. A full disk, an
exception or a signal leaves the former file and no temporary file; a power cut or a SIGKILL may leave a `.tmp-*`, but
never a partial file under the final name. In a bucket (paths of `locations.location`) writing an object is atomic.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import stat
import unicodedata
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from imagen_jax import signals
from imagen_jax.checks import Verbatim, require
from imagen_jax.storage import locations
from imagen_jax.storage.input_files import kind_of


def read_text(path: str | os.PathLike) -> str:
    """Return the text of a UTF-8 file.

    Raises:
      FileNotFoundError: there is no such file.
      OSError: it is not a regular file, or cannot be read.
      UnicodeDecodeError: it is not UTF-8.
    """
    if not locations.is_remote(path):
        check_regular(path)
        return Path(path).read_text(encoding="utf-8")
    with one_line_errors(path, "read"):
        return path.read_bytes().decode("utf-8")


def exists(path: str | os.PathLike) -> bool:
    """Whether anything has this name, including a dangling link."""
    if not locations.is_remote(path):
        return os.path.lexists(path)
    with one_line_errors(path, "read"):
        return path.exists()


def check_regular(path: str | os.PathLike) -> None:
    """Raise an OSError if `path` is not a regular file: reading a pipe, for example, may block for ever."""
    kind = kind_of(os.stat(path).st_mode)
    if kind != "a file":
        raise OSError(f"{path} must be a regular file; it is {kind}: remove it, or put the file back.")


def write(path: str | os.PathLike, content: bytes | str) -> None:
    """Write a file, replacing the one that is there; a str is encoded as UTF-8.

    Raises:
      OSError: one line that names the file and the reason; the former file is unchanged.
    """
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_json(path: str | os.PathLike, content: Any, *, indent: int | None = None) -> None:
    """Write a JSON file as `write` does, with a line break at its end."""
    write(path, json.dumps(content, indent=indent) + "\n")


def write_new(path: str | os.PathLike, content: bytes | str) -> Path:
    """Write NAME.EXT, or the first of NAME-2.EXT, NAME-3.EXT, ... that does not exist.

    No file is replaced, even if several processes write to one folder at the same time.

    Returns:
      the path that was written.

    Raises:
      OSError: as for `write`.
    """
    path, number = path if locations.is_remote(path) else Path(path), 1
    free = path
    while not create(free, content):
        while exists(free):
            number += 1
            free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def slug(text: str) -> str:
    """Return the words of a text joined by hyphens, as a part of file names; "prompt" if it has none."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFC", text).lower()).strip("-")
    return words.encode()[:60].decode(errors="ignore").strip("-") or "prompt"


def create(path: str | os.PathLike, content: bytes | str) -> bool:
    """Write a file unless its name exists. Of several processes that create one file, exactly one succeeds.

    Returns:
      whether the file was written.

    Raises:
      OSError: as for `write`.
    """
    content = content.encode() if isinstance(content, str) else content
    if locations.is_remote(path):
        return _create_object(path, content)
    if os.path.lexists(path):
        return False
    with _temporary(Path(path)) as (temporary, file):
        file.write(content)
        _finish(file)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            return _rename_to_new(temporary, path)
        sync_directory(Path(path).parent)
    return True


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Yield an open file whose content replaces that of `path` when the block ends without an exception.

    A symbolic link is followed: its target is replaced.

    Raises:
      OSError: as for `write`.
    """
    if locations.is_remote(path):
        buffer = io.BytesIO()
        yield buffer
        with one_line_errors(path, "written"):
            path.write_bytes(buffer.getvalue())
        return
    target = Path(os.path.realpath(path))
    # What is still a link points to itself. Replacing a device as root would remove it from the system.
    if os.path.lexists(target) and not stat.S_ISREG(target.lstat().st_mode):
        raise OSError(f"{path} cannot be written: it exists and is not a regular file.")
    with _temporary(target) as (temporary, file):
        yield file
        _finish(file)
        os.replace(temporary, target)
        sync_directory(target.parent)


def check_directory(
    path: str | os.PathLike, option: str, *, needed: int = 0, names: Iterable[str] = ()
) -> None:
    """Check, before anything is computed, that a directory can be created or written to, and that there is space.

    Args:
      path: of the directory; it need not exist.
      option: how the user named it, such as "--output".
      needed: estimate of the bytes to be written.
      names: of files that will be replaced there.

    Raises:
      ValueError: it is not a directory, cannot be created or written to, one of the names is taken by something other
        than a file, or the disk has too little space.
    """
    if locations.is_remote(path):  # permissions of a bucket are known only when something is written
        bucket = list(path.parents)[-3] if len(path.parents) > 2 else path  # below "/" and the scheme
        # A library would make a missing one.
        require(exists(bucket), option, "be in a bucket that exists and can be read", Verbatim(path))
        return

    def check(holds: bool, rule: str, got: str, fix: str = "name another") -> None:
        require(holds, option, rule, Verbatim(got), fix)

    for link in (Path(path), *Path(path).parents):
        what = "a link to what is no directory" if os.path.exists(link) else "a link that leads nowhere"
        check(os.path.isdir(link) or not os.path.islink(link), "be a directory", f"{link}, which is {what}")
    place = Path(os.path.realpath(path))
    parent, missing = place, []
    while not os.path.lexists(parent):
        parent, missing = parent.parent, [parent.name, *missing]
    above = f"{path}, which is" if parent == place else f"{parent}, above {path}, which is"
    check(parent.is_dir(), "be a directory", f"{above} {'a file' if parent.is_file() else 'no directory'}")
    longest = os.pathconf(parent, "PC_NAME_MAX")
    too_long = [name for name in missing if len(os.fsencode(name)) > longest]
    if len(os.fsencode(place)) + longest >= os.pathconf(parent, "PC_PATH_MAX"):
        too_long.append(str(place))
    got = f"{too_long[0][:40]}... of {len(os.fsencode(too_long[0]))} bytes" if too_long else ""
    rule = f"have names of at most {longest} bytes in a path that leaves room for a file's"
    check(not too_long, rule, got, "shorten it")
    probe = parent / f".tmp-{uuid.uuid4().hex}"
    try:  # No other check covers read-only mounts, quotas, /proc and permissions.
        with signals.clean_up(lambda: probe.unlink(missing_ok=True)):
            probe.open("xb").close()
            probe.unlink()
    except OSError as error:
        where = f"{path}," if parent == place else f"{parent}, where {path} would be made,"
        check(False, "be writable", f"{where} which is not ({error.strerror})")
    for name in names:
        is_free = os.path.isfile(place / name) or not os.path.exists(place / name)
        got, fix = f"{place / name}, which is no file", "move it away, or name another"
        check(is_free, f"be a place for the file {name}", got, fix)
    free = shutil.disk_usage(parent).free
    got, fix = f"{free / 2**20:.4g} MiB on the disk of {path}", "free some space, or name a directory on another disk"
    check(free >= needed, f"have room for about {needed / 2**20:.4g} MiB", got, fix)


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk and so survives a power cut."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk, where the file system supports it."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _temporary(target: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """Yield a new file in the folder of `target`; remove it at the end unless it was renamed."""
    temporary = target.with_name(f".tmp-{uuid.uuid4().hex}")  # its length does not depend on the target's
    try:
        with signals.clean_up(lambda: temporary.unlink(missing_ok=True)), temporary.open("xb") as file:
            yield temporary, file
    except OSError as error:
        # Errors of an open file have no file name, and the user does not know the temporary one.
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


def _rename_to_new(temporary: Path, path: str | os.PathLike) -> bool:
    """Rename to a name that does not exist; an exclusively created empty file reserves it first."""
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


def _create_object(path: Any, content: bytes) -> bool:
    from fsspec.core import url_to_fs

    fs, key = url_to_fs(os.fspath(path))
    with one_line_errors(path, "written"):
        try:
            fs.pipe_file(key, content, mode="create")
        except FileExistsError:
            return False
    return True


@contextlib.contextmanager
def one_line_errors(path: str | os.PathLike, done: str) -> Iterator[None]:
    """Turn the errors of a bucket's library into an OSError of one line, "PATH cannot be DONE: ..."."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist, or its bucket does not.") from error
    except UnicodeDecodeError:
        raise
    except Exception as error:  # botocore's and google's own kinds
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise OSError(f"{path} cannot be {done}: {reason}.") from error
