"""Messages of a command: lines for people, or JSON for programs."""

import dataclasses
import datetime
import json
import logging
import sys
import threading
import warnings
from typing import Any

from imagen_jax import progress, signals

_LOGGER = logging.getLogger("imagen_jax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of every command."""

    quiet: bool = False
    """Show results, warnings and errors only."""
    log_json: bool = False
    """Write messages to stderr as JSON, one object per line, and show no progress bar."""


def configure(program: str, options: Options) -> None:
    """Send the messages of the package, warnings, and errors of threads to the terminal.

    By default information goes to stdout; warnings and errors go to stderr, after the name of the program. With
    `log_json` each message is an object with "time" (ISO 8601, UTC), "level", "message" and, where there are any,
    "fields".
    """
    handler = progress.LineHandler(all_to_stderr=options.log_json)
    handler.setFormatter(_Json() if options.log_json else _Text(program))
    _LOGGER.handlers[:] = [handler]
    _LOGGER.setLevel(logging.WARNING if options.quiet else logging.INFO)
    progress.has_bars = not options.quiet and not options.log_json
    signals.format_line = _json_line if options.log_json else str
    warnings.showwarning = lambda message, *_: _LOGGER.warning(str(message))
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # Orbax and TFDS log at length, and what they raise is raised again for every array.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
    sys.unraisablehook = _without_closed_loops
    threading.excepthook = lambda args: _LOGGER.error(
        f"in the background: {' '.join(str(args.exc_value).split())[:300]}"
    )


class _Text(logging.Formatter):
    def __init__(self, program: str):
        super().__init__()
        self._program = program

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            return f"{self._program}: {text}"
        return f"{self._program}: warning: {text}" if record.levelno >= logging.WARNING else text


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        return _json_line(record.getMessage(), record.levelname.lower(), **({"fields": fields} if fields else {}))


def _json_line(message: str, level: str = "error", **more: Any) -> str:
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return json.dumps({"time": now, "level": level, "message": message, **more}, default=str)


def _without_closed_loops(unraisable: Any) -> None:
    """Hide what tensorstore's threads raise where one array of a checkpoint fails: Orbax then closes their event loop,
    and their errors would hide the first one."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)
