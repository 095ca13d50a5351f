"""Ends of a run that come from outside: signals, notices of a cluster, and steps that never come back."""

import collections
import faulthandler
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax import parallel

_LATER = 2  # steps after which processes read what the others were asked


@contextmanager
def stop_requests(mesh: Mesh) -> Iterator[Callable[[], int | None]]:
    """asked(), to be called after every step: the signal that asks to stop here, or None.

    SIGINT and SIGTERM (which is also how clusters announce that they will take a machine away, some more than once)
    ask for it; a second SIGINT ends the process at once. Of several processes any may be asked: all of them stop after
    the same step, one of the next.
    """
    received: list[int] = []

    def handler(number: int, _) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield _asked_of_any(received, mesh) if jax.process_count() > 1 else lambda: next(iter(received), None)
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _asked_of_any(received: list[int], mesh: Mesh) -> Callable[[], int | None]:
    """The processes tell each other at every step, and read it some steps later, when it costs no waiting."""
    told: collections.deque[jax.Array] = collections.deque()

    def asked() -> int | None:
        told.append(parallel.flag_of_all(bool(received), mesh))
        if len(told) <= _LATER or not np.asarray(told.popleft()):
            return None
        return next(iter(received), signal.SIGTERM)

    return asked


class Watchdog:
    """Ends a process that has not called `alive` for `limit_s` seconds, with every thread's stack on stderr.

    A read from a dead file server, or a collective whose other side is stuck, would otherwise hold the devices for
    ever. It needs no Python thread to be running. Use as a context manager.
    """

    def __init__(self, limit_s: int):
        self._limit_s = limit_s

    def alive(self) -> None:
        """There is progress; watches from now on."""
        faulthandler.dump_traceback_later(self._limit_s, exit=True, file=sys.__stderr__)

    def rest(self) -> None:
        """Watches no more until the next `alive`: this process waits for others, which watch themselves."""
        faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> "Watchdog":
        self.alive()
        return self

    def __exit__(self, *_) -> None:
        self.rest()
