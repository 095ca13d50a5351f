"""Directories that are written whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from imagen_jax import signals
from imagen_jax.checks import Verbatim, require
from imagen_jax.storage import files, locations


def check_new(path: Path, name: str, *, needed: int = 0) -> None:
    """Check that a directory does not exist, or is empty, and that it can be made and filled.

    Args:
      path: of the directory, as from `locations.location`.
      name: how the user named it, such as "--output".
      needed: estimate of the bytes to be written.

    Raises:
      ValueError: it holds something, cannot be made, or the disk has too little space.
    """
    files.check_directory(path, name, needed=needed)
    with files.one_line_errors(path, "listed"):
        is_new = not files.exists(path) or not any(path.iterdir())
    require(is_new, name, "be a new directory", Verbatim(f"{path}, which has files"), "name another")


@contextlib.contextmanager
def writing_new(path: Path) -> Iterator[Path]:
    """Yield a directory to write files to, which becomes `path` when the block ends without an exception.

    In a bucket, which cannot rename, it is `path` itself: write the file last without which the others mean nothing.

    Args:
      path: of a directory that `check_new` accepts.

    Raises:
      OSError: one line that names the file that could not be written; nothing is left.
    """
    if locations.is_remote(path):
        yield path
        return
    path = path.absolute()
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}")
    remove = lambda: shutil.rmtree(temporary, ignore_errors=True)
    try:
        with signals.clean_up(remove):
            temporary.mkdir(parents=True)
            yield temporary
            os.replace(temporary, path)
        files.sync_directory(path.parent)
    except OSError as error:
        told = OSError(str(error).replace(str(temporary), str(path)))
        told.errno = error.errno
        raise told from error
    finally:
        remove()
