"""Ends of a run that come from outside: signals, notices of a cluster, and steps that never come back."""

import collections
import faulthandler
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax import sharding, signals

_LATER = 2  # steps after which processes read what the others were asked


class StopRequests:
    """Notes SIGINT and SIGTERM between `begin` and the end of this context, which ask a run to stop after a step.

    SIGTERM is also how clusters announce that they will take a machine away, some more than once; a second SIGINT ends
    the process at once. Of several processes any may be asked: all of them stop after the same step, one of the next.
    """

    def __init__(self, mesh: Mesh):
        self._received: list[int] = []
        self._before: dict[int, Any] = {}
        several = jax.process_count() > 1
        self._asked = _asked_of_any(self._received, mesh) if several else self.asked_here

    def begin(self) -> None:
        """From here on there is something to save. Before, a signal does what it does to any command."""
        if signals.defer(self._received) or threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, _) -> None:
        self._received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])

    def asked(self) -> int | None:
        """The signal that asks to stop here, or None; to be called after every step, by every process."""
        return self._asked()

    def asked_here(self) -> int | None:
        """The signal that this process has received, if any."""
        return next(iter(self._received), None)

    def __enter__(self) -> "StopRequests":
        return self

    def __exit__(self, *_) -> None:
        signals.resume()
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _asked_of_any(received: list[int], mesh: Mesh) -> Callable[[], int | None]:
    """The processes tell each other at every step, and read it some steps later, when it costs no waiting."""
    told: collections.deque[jax.Array] = collections.deque()

    def asked() -> int | None:
        told.append(sharding.any_process(bool(received), mesh))
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
