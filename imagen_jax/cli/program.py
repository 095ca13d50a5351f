"""Runs a command, and reports a user's error as one line and exit status 2."""

import logging
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagen_jax import signals
from imagen_jax.cli import logs, options, parsing, plugins, xla_flags

_LOGGER = logging.getLogger(__name__)


def run(main: Callable[[Any], int | None], parse: Callable[[list[str]], Any]) -> None:
    """Parse the command line and run a command.

    Exits with the status of `main`, with 2 after one line for a user's error, or with 130 after an interruption.

    Args:
      main: runs what `parse` returns; returns the exit status, None for 0.
      parse: turns the arguments into options: a dataclass, or a tuple of some.
    """
    name, known = Path(sys.argv[0]).name, frozenset()
    logs.configure(name, logs.Options())
    xla_flags.set_defaults()
    try:
        args, chosen = parsing.split_flags(sys.argv[1:], logs.Options)
        logs.configure(name, chosen)
        plugins.load()
        parsed = parse(args)
        known = options.names(parsed)
        status = main(parsed)
        compilation = sys.modules.get("imagen_jax.compilation")
        if compilation is not None and compilation.has_abandoned_compilation():
            signals.exit_immediately(status)
        sys.exit(status)
    except (ValueError, OSError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) and _is_output_closed():  # as by head, which has read enough
            _leave(1)
        signals.wait_for_signals()
        _LOGGER.error(options.as_typed(" ".join(str(error).split()), known))
        _leave(2)
    except RuntimeError as error:
        processes = sys.modules.get("imagen_jax.processes")
        if processes is None or not processes.is_process_lost(error):
            raise
        reason = " ".join(str(error).split())[:200]
        _LOGGER.error(
            f"another process of the run has ended or cannot be reached ({reason}): see its log; the same command "
            "continues"
        )
        _leave(processes.STATUS_PROCESS_LOST)
    except KeyboardInterrupt:
        _LOGGER.error("interrupted; the same command continues")
        sys.exit(130)


def _is_output_closed() -> bool:
    """Whether nobody reads standard output any more; what is still to be printed is then dropped."""
    try:
        file = sys.stdout.fileno()
    except OSError:  # a stand-in
        return False
    poll = select.poll()
    poll.register(file, 0)
    is_closed = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if is_closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file)
    return is_closed


def _leave(status: int) -> None:
    """Exit, from one of several processes of a run without waiting for the others."""
    jax = sys.modules.get("jax")  # a process that has not imported it has joined no run
    if jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1:
        from imagen_jax import processes

        processes.abort(status)
    sys.exit(status)
