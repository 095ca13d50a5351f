"""Ends of a run that come from outside: signals, preemption notices, and steps that never come back."""

import faulthandler
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils


@contextmanager
def stop_requests() -> Iterator[Callable[[int], int | None]]:
    """asked(step), to be called after every step: the signal that asks to stop here, or None.

    SIGINT and SIGTERM (which is also how clusters announce that they will take a machine away) ask for it; a second
    one ends a process at once. Of several processes any may be asked: all of them then stop after the same step.
    """
    with _several_processes() if jax.process_count() > 1 else _one_process() as asked:
        yield asked


@contextmanager
def _one_process() -> Iterator[Callable[[int], int | None]]:
    received: list[int] = []

    def handler(number: int, _) -> None:
        received.append(number)
        signal.signal(number, before[number])

    with _handlers({signal.SIGINT: handler, signal.SIGTERM: handler}) as before:
        yield lambda step: received[0] if received else None


@contextmanager
def _several_processes() -> Iterator[Callable[[int], int | None]]:
    # JAX's own service has taken SIGTERM since the processes joined. It lets them agree on the next step that all of
    # them reach; a handler of Python's would take the signal away from it.
    def handler(number: int, _) -> None:
        signal.signal(number, before[number])
        os.kill(os.getpid(), signal.SIGTERM)

    with _handlers({signal.SIGINT: handler}) as before:
        yield lambda step: signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None


@contextmanager
def _handlers(handlers: dict[int, Callable]) -> Iterator[dict[int, Callable]]:
    """Sets handlers of signals; yields those that were there, and puts them back."""
    before = {number: signal.getsignal(number) for number in handlers}
    for number, handler in handlers.items():
        signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def watchdog(limit_s: int) -> Iterator[Callable[[], None]]:
    """alive(): whoever has not called it for `limit_s` seconds is ended, with every thread's stack on stderr.

    A read from a dead file server, or a collective whose other side is stuck, would otherwise hold the devices for
    ever. It needs no Python thread to be running.
    """
    alive = lambda: faulthandler.dump_traceback_later(limit_s, exit=True, file=sys.__stderr__)
    alive()
    try:
        yield alive
    finally:
        faulthandler.cancel_dump_traceback_later()
