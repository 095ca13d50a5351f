"""Reading of files that a user names: regular files of a limited size, with errors that name them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_OWN_PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")


# Errors that concern one file or folder; any other, such as of a disk or a network, is not a property of the input.
OWN_ERRORS = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


class NoFileError(ValueError):
    """The path is not a regular file. `kind` says what it is, such as "a pipe"."""

    def __init__(self, kind: str):
        super().__init__(f"it is {kind}, not a file")
        self.kind = kind


class TooLargeError(ValueError):
    """A file is larger than the limit."""


def read_file(path: Path, most: int, *, pipes: bool = False) -> bytes:
    """Return the bytes of a regular file, whose size is checked before it is read.

    Args:
      path: a file or a link to one.
      most: largest size in bytes.
      pipes: whether to read pipes that this process already has open, such as /dev/stdin or /dev/fd/63.

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
    """Return the bytes of a file that a user names with an option.

    Args:
      option: how the user named it, such as "--image".
      path, most, pipes: as for `read_file`.
      what: what the option takes, such as "a picture file".
      fix: what the user can do, such as "give a file".

    Raises:
      ValueError: one line that names the option: it does not exist, is no file, has too many bytes, or cannot be read.
    """
    try:
        return read_file(path, most, pipes=pipes)
    except NoFileError as error:
        reason = f"is {error.kind}"
    except TooLargeError as error:
        rule = f"have at most {most} bytes"
        raise ValueError(f"{option} must {rule}; got {path}, which has {error}: give a smaller one.") from error
    except FileNotFoundError:
        reason = "does not exist"
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
    raise ValueError(f"{option} must be {what}; got {path}, which {reason}: {fix}.")


def open_file(path: Path, *, pipes: bool = False) -> BinaryIO:
    """Open a regular file for reading; arguments and errors as for `read_file`."""
    kind = kind_of(os.stat(path).st_mode)
    own = pipes and kind == "a pipe" and str(path).startswith(_OWN_PIPES)
    if kind != "a file" and not own:
        raise NoFileError(kind)
    # Without blocking: it may have been replaced by a pipe, whose opening waits for a writer.
    return os.fdopen(os.open(path, os.O_RDONLY | (0 if own else getattr(os, "O_NONBLOCK", 0))), "rb")


def kind_of(mode: int) -> str:
    """Return what a `st_mode` of `os.stat` describes: "a file", "a folder", "a pipe", "a socket" or "a device"."""
    kinds = {
        stat.S_IFREG: "a file",
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(mode), "a device")
