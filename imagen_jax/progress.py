"""Progress: a bar on stderr where that is a terminal, and log lines at intervals elsewhere.

Messages of the package go to the standard logger "imagen_jax". Its handler writes lines that do not break a bar; as
with any logger, logging.getLogger("imagen_jax").setLevel(logging.WARNING) hides information.
"""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

LINE_EVERY_S = 30.0  # at first; later every 20th of the time so far: some hundred lines in a run of a week
T = TypeVar("T")


has_bars = True  # False: log lines also where stderr is a terminal


class LineHandler(logging.Handler):
    """Writes log records as lines above a progress bar: information to stdout, warnings and errors to stderr.

    Of several processes of a run the first informs; the others only warn.
    """

    def __init__(self, all_to_stderr: bool = False):
        super().__init__()
        self._all_to_stderr = all_to_stderr

    def emit(self, record: logging.LogRecord) -> None:
        is_information = record.levelno < logging.WARNING
        if is_information and not _is_first_process():
            return
        stream = sys.stdout if is_information and not self._all_to_stderr else sys.stderr
        try:
            tqdm.write(self.format(record), file=stream)
            stream.flush()
        except OSError:
            self.handleError(record)


def _is_first_process() -> bool:
    jax = sys.modules.get("jax")  # a process that has not imported it has joined no run
    return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


logger = logging.getLogger("imagen_jax")
if not logger.handlers:
    logger.addHandler(LineHandler())
    logger.propagate = False
if logger.level == logging.NOTSET:
    logger.setLevel(logging.INFO)


class Progress:
    """Counts up to `total`, as a context manager.

    Args:
      total: number of items; None: not known.
      unit: the counted items, in the plural.
      name: the task, shown at the start of the bar and of lines.
      done: number of items that are done already.
      shown: False shows nothing.
    """

    def __init__(
        self, total: int | None, unit: str, name: str = "", *, done: int = 0, shown: bool = True
    ) -> None:
        self._total, self._unit, self._name = total, unit, name
        self._done, self._status = done, ""
        self._writes_lines = shown and not (has_bars and sys.stderr.isatty())
        has_width = not self._writes_lines and _columns() > 0
        self._bar = tqdm(
            total=total,
            initial=done,
            desc=name or None,
            unit=f" {unit}",
            dynamic_ncols=has_width,
            ncols=None if has_width else 80,  # some terminals do not tell theirs
            disable=not shown or self._writes_lines,
        )
        self._first, self._begin = done, time.monotonic()
        self._logged, self._logged_at = done, self._begin

    def resume(self) -> None:
        """Leave the time since the last step, in which something else was done, out of the speed."""
        self._bar.unpause()
        self._logged_at = time.monotonic()

    def update(self, num: int = 1) -> None:
        """Count `num` more."""
        self._done += num
        self._bar.update(num)
        now = time.monotonic()
        if self._writes_lines and now - self._logged_at >= max(LINE_EVERY_S, (now - self._begin) / 20):
            self._log_rate(now)

    def status(self, text: str) -> None:
        """Show `text` beside the bar, and in the next lines."""
        self._status = text
        self._bar.set_postfix_str(text)

    def close(self) -> None:
        self._bar.close()
        seconds = time.monotonic() - self._begin
        if self._writes_lines and self._done > self._first and seconds >= 1:
            self._log(f"{self._counted()} in {duration(seconds)}", seconds=round(seconds, 3))
        self._writes_lines = False

    def _log_rate(self, now: float) -> None:
        rate = (self._done - self._logged) / (now - self._logged_at)
        line, left = f"{self._counted()}, {rate:.3g} {self._unit}/s", None
        if rate and self._total is not None:
            left = (self._total - self._done) / rate
            line += f", {duration(left)} left"
        self._log(line, per_second=rate, seconds_left=left)
        self._logged, self._logged_at = self._done, now

    def _log(self, line: str, **fields: float | None) -> None:
        status = f", {self._status}" if self._status else ""
        counted = {"task": self._name, "done": self._done, "total": self._total, "unit": self._unit}
        logger.info(line + status, extra={"fields": counted | fields | {"status": self._status}})

    def _counted(self) -> str:
        of = "" if self._total is None else f"/{self._total}"
        return f"{f'{self._name}: ' if self._name else ''}{self._done}{of} {self._unit}"

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def over(items: Iterable[T], total: int | None, unit: str, name: str = "", *, done: int = 0) -> Iterator[T]:
    """Yield `items`, and show how many of them are done."""
    with Progress(total, unit, name, done=done) as progress:
        for item in items:
            yield item
            progress.update()


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0


def duration(seconds: float) -> str:
    """Return a duration in words: "42s", "3m05s", "2h07m"."""
    seconds = round(max(0.0, seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"
