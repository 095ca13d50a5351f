"""Progress of a command: a bar on stderr where that is a terminal, and elsewhere a line on stdout now and then.

`logger` is for lines about what happens; they go to stdout and do not break a bar. Like any logger it can be turned
down: logging.getLogger("imagen_jax").setLevel(logging.WARNING).
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


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()
        except OSError:
            self.handleError(record)


logger = logging.getLogger("imagen_jax")
if not logger.handlers:
    logger.addHandler(_Lines())
    logger.propagate = False
if logger.level == logging.NOTSET:
    logger.setLevel(logging.INFO)


class Progress:
    """Counts up to `total`; use as a context manager.

    Args:
      total: how many there are; None: not known.
      unit: what is counted, in the plural.
      name: what is done, at the start of the bar and of lines.
      done: how many are done already.
      shown: False shows nothing.
    """

    def __init__(
        self, total: int | None, unit: str, name: str = "", *, done: int = 0, shown: bool = True
    ) -> None:
        self._total, self._unit, self._name = total, unit, name
        self._done, self._status = done, ""
        self._writes_lines = shown and not sys.stderr.isatty()
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
        self._said, self._said_at = done, self._begin

    def resume(self) -> None:
        """Leaves the time since the last step, which went into something else, out of the speed."""
        self._bar.unpause()
        self._said_at = time.monotonic()

    def update(self, num: int = 1) -> None:
        """`num` more are done."""
        self._done += num
        self._bar.update(num)
        now = time.monotonic()
        if self._writes_lines and now - self._said_at >= max(LINE_EVERY_S, (now - self._begin) / 20):
            self._say(now)

    def status(self, text: str) -> None:
        """Shows `text` beside the bar, and in the next lines."""
        self._status = text
        self._bar.set_postfix_str(text)

    def close(self) -> None:
        self._bar.close()
        seconds = time.monotonic() - self._begin
        if self._writes_lines and self._done > self._first and seconds >= 1:
            logger.info(f"{self._counted()} in {duration(seconds)}{self._suffix()}")
        self._writes_lines = False

    def _say(self, now: float) -> None:
        rate = (self._done - self._said) / (now - self._said_at)
        line = f"{self._counted()}, {rate:.3g} {self._unit}/s"
        if rate and self._total is not None:
            line += f", {duration((self._total - self._done) / rate)} left"
        logger.info(line + self._suffix())
        self._said, self._said_at = self._done, now

    def _counted(self) -> str:
        of = "" if self._total is None else f"/{self._total}"
        return f"{f'{self._name}: ' if self._name else ''}{self._done}{of} {self._unit}"

    def _suffix(self) -> str:
        return f", {self._status}" if self._status else ""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_) -> None:
        self.close()


def over(items: Iterable[T], total: int | None, unit: str, name: str = "", *, done: int = 0) -> Iterator[T]:
    """Yields `items` and shows how many of them are done."""
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
    """Seconds in words: "42s", "3m05s", "2h07m"."""
    seconds = round(max(0.0, seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"
