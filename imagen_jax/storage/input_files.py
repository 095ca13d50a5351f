"""Reading files that a user names: regular, not too large, and told by name if they cannot be read."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_OWN_PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")


# What belongs to one file or folder; any other error, as of a disk or a network, is no property of the input.
OWN_ERRORS = (errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)


class NoFileError(ValueError):
    """The path is no regular file; `kind` is what it is, such as "a pipe"."""

    def __init__(self, kind: str):
        super().__init__(f"it is {kind}, not a file")
        self.kind = kind


class TooLargeError(ValueError):
    """A file has more bytes than are read of it."""


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
