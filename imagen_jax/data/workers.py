"""Worker processes that end with their parent, however it ends."""

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
    """Call a function in worker processes; yield (number, future) of each call when it is done.

    `future.result()` raises the error of the call. The function and its arguments are pickled. If the iterator ends
    early, by an exception or `close`, the workers end at once.
    """
    context = multiprocessing.get_context("spawn")  # fork breaks the threads of Arrow, BLAS and JAX
    ending, ours = context.Pipe(duplex=False)
    pool = concurrent.futures.ProcessPoolExecutor(num_workers, context, _start, (ending,))
    try:
        with signals.starting_processes():
            futures = {pool.submit(function, *arguments): number for number, arguments in calls.items()}
        for future in concurrent.futures.as_completed(futures):
            yield futures.pop(future), future
    except BaseException:
        ours.close()  # the workers see the end of the pipe
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        ours.close()
        ending.close()


def end_after(wait: Callable[[], Any]) -> None:
    """Ignore SIGINT in this process, and end it at once when `wait` returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def end() -> None:
        with contextlib.suppress(EOFError, OSError):
            wait()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _start(ending: Connection) -> None:
    end_after(ending.recv)  # returns when the parent closes its end of the pipe or is killed
