"""Compiling programs: on disk between processes, in all processes at once, and cancelled by a signal."""

import concurrent.futures
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

from imagen_jax.processes import meet


class Cancelled(Exception):
    """A compilation is no longer wanted."""


_cancelled: list[threading.Thread] = []


def compiles_in_vain() -> bool:
    """Whether a compilation that was cancelled still runs: C++ cannot be stopped, nor can Python end in order then."""
    return any(thread.is_alive() for thread in _cancelled)


def compiled(function: Any, *args: Any, cancelled: Callable[[], Any] | None = None) -> Any:
    """A jitted function compiled for arguments like these, once every process has its program.

    Args:
      cancelled: asked now and then, where this is the only process: others would wait for one that gives up.

    Raises:
      Cancelled: `cancelled` returned something true; the compilation goes on in vain.
    """
    if cancelled is None or jax.process_count() > 1:
        program = function.lower(*args).compile()
    else:
        program = _in_a_thread(lambda: function.lower(*args).compile(), cancelled)
    meet()
    return program


T = TypeVar("T")


def _in_a_thread(call: Callable[[], T], cancelled: Callable[[], Any]) -> T:
    done: concurrent.futures.Future = concurrent.futures.Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as error:
            done.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while True:
        try:
            return done.result(timeout=0.1)
        except TimeoutError:
            if done.done():  # the call's own
                raise
        if cancelled():
            _cancelled.append(thread)
            raise Cancelled


def use_compilation_cache(directory: str | Path | None = None) -> Path:
    """Keeps compiled programs on disk, so that another process with the same ones compiles nothing.

    In `directory`; else where JAX_COMPILATION_CACHE_DIR says, or in the user's cache directory.
    """
    given = directory or jax.config.jax_compilation_cache_dir
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(given) if given else Path(home) / "imagen_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path
