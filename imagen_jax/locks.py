"""Files that one process at a time may hold."""

import fcntl
from typing import IO


def lock(file: IO, *, if_unsupported: bool = False) -> bool:
    """Locks an open file until it is closed, however its process ends; False if another process has it.

    `if_unsupported` is the answer on a file system that has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return if_unsupported
    return True
