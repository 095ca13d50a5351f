"""Compilation: cached on disk, finished in all processes before any continues, and cancelled by a signal."""

import concurrent.futures
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

from imagen_jax.processes import barrier

T = TypeVar("T")


class Cancelled(Exception):
    """The caller no longer wants the program being compiled."""


_abandoned: list[threading.Thread] = []


def has_abandoned_compilation() -> bool:
    """Whether a cancelled compilation still runs: it cannot be stopped, and Python cannot exit normally meanwhile."""
    return any(thread.is_alive() for thread in _abandoned)


def options(platform: str) -> dict[str, Any] | None:
    """Return `compiler_options` of `jax.jit` for programs that train, on devices of `platform`.

    On CPUs they compile in less time without the costlier passes, and run as fast: most of their time goes to products
    and convolutions, which are calls of libraries. See docs/performance.md.
    """
    if platform != "cpu":
        return None
    return {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}


def compile_jitted(function: Any, *args: Any, cancelled: Callable[[], Any] | None = None) -> Any:
    """Compile a jitted function for arguments like these; return when every process has compiled it.

    Args:
      function: as `jax.jit` returns it.
      *args: arrays, or their shapes.
      cancelled: polled while compiling. Ignored with several processes, where the others would wait for one that
        gives up.

    Returns:
      the compiled program, to be called with such arguments.

    Raises:
      Cancelled: `cancelled` returned something true; the compilation continues in the background.
    """
    if cancelled is None or jax.process_count() > 1:
        program = function.lower(*args).compile()
    else:
        program = _call_in_thread(lambda: function.lower(*args).compile(), cancelled)
    barrier()
    return program


def _call_in_thread(call: Callable[[], T], cancelled: Callable[[], Any]) -> T:
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
            if done.done():  # raised by `call`
                raise
        if cancelled():
            _abandoned.append(thread)
            raise Cancelled


def use_compilation_cache(directory: str | Path | None = None) -> Path:
    """Keep compiled programs on disk, so that a later process with the same programs compiles nothing.

    Args:
      directory: of the cache; None takes JAX_COMPILATION_CACHE_DIR, else imagen_jax/compiled in the user's cache
        directory.

    Returns:
      the directory.
    """
    given = directory or jax.config.jax_compilation_cache_dir
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(given) if given else Path(home) / "imagen_jax" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    return path
