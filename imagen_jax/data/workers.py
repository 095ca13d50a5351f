"""Calls of a function shared among processes, which end when their parent does, however it ends."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing.connection import Connection
from typing import Any

from imagen_jax import signals


def run(function: Callable, calls: dict[int, tuple], num_workers: int) -> Iterator[tuple[int, Future]]:
    """Yields (number, future) of each call as it is done; `result()` raises what the call did.

    The function and its arguments go to other processes. Left early, by an exception or `close`, it
    ends the workers at once.
    """
    context = multiprocessing.get_context("spawn")  # Arrow, BLAS and JAX have threads, which fork breaks
    ending, ours = context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(num_workers, context, _start, (ending,))
    try:
        with signals.starting_processes():
            futures = {pool.submit(function, *arguments): number for number, arguments in calls.items()}
        for future in concurrent.futures.as_completed(futures):
            yield futures.pop(future), future
    except BaseException:
        ours.close()  # they see the end of the pipe
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        ending.close()


def end_after(wait: Callable[[], Any]) -> None:
    """Leaves SIGINT to the parent of this process, and ends it, in the midst of its work, once `wait` is over."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end() -> None:
        with contextlib.suppress(EOFError, OSError):
            wait()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _start(ending: Connection) -> None:
    end_after(ending.recv)  # the parent closes its end of the pipe, or is killed
