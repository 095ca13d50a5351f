"""Stopping a run from outside: signals, preemption notices, and a watchdog for steps that never finish."""

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

_DELAY = 2  # steps after which a process reads whether another one was asked to stop


class StopRequests:
    """Records SIGINT and SIGTERM between `begin` and the end of this context; they ask a run to stop after a step.

    Clusters send SIGTERM before they take a machine away, some more than once; a second SIGINT ends the process at
    once. With several processes, a signal to any of them stops all after the same step, one of the next.
    """

    def __init__(self, mesh: Mesh):
        self._received: list[int] = []
        self._before: dict[int, Any] = {}
        several = jax.process_count() > 1
        self._asked = _asked_of_any(self._received, mesh) if several else self.asked_here

    def begin(self) -> None:
        """Record signals from now on; before the first step there is nothing to save, and they end the process."""
        if signals.defer(self._received) or threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, _) -> None:
        self._received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])

    def asked(self) -> int | None:
        """Return the signal that asks to stop after this step, or None; every process calls this after every step."""
        return self._asked()

    def asked_here(self) -> int | None:
        """Return the signal that this process has received, or None."""
        return next(iter(self._received), None)

    def __enter__(self) -> "StopRequests":
        return self

    def __exit__(self, *_) -> None:
        signals.resume()
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _asked_of_any(received: list[int], mesh: Mesh) -> Callable[[], int | None]:
    """Return a function that exchanges signals at every step and reads the result some steps later, without waiting."""
    told: collections.deque[jax.Array] = collections.deque()

    def asked() -> int | None:
        told.append(sharding.any_process(bool(received), mesh))
        if len(told) <= _DELAY or not np.asarray(told.popleft()):
            return None
        return next(iter(received), signal.SIGTERM)

    return asked


class Watchdog:
    """Ends the process if `alive` is not called for `limit_s` seconds, with the stacks of all threads on stderr.

    Otherwise a read from a file server that is down, or a collective that never completes, would hold the devices
    indefinitely. It works while no Python thread runs. A context manager.
    """

    def __init__(self, limit_s: int):
        self._limit_s = limit_s

    def alive(self) -> None:
        """Restart the countdown."""
        faulthandler.dump_traceback_later(self._limit_s, exit=True, file=sys.__stderr__)

    def rest(self) -> None:
        """Stop the countdown until the next `alive`: this process waits for others with watchdogs of their own."""
        faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> "Watchdog":
        self.alive()
        return self

    def __exit__(self, *_) -> None:
        self.rest()
