"""Inputs that are left out of a data set: listed and counted with the reason, never fatal."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path

from imagen_jax.storage import files

_LENGTH = 5000  # characters of a field; names and details from an input may be longer


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """One input that was left out. `file` is its place, such as "photo.jpg", "a.tar:photo.jpg" or "a.parquet:7"."""

    file: str
    reason: str  # a kind, such as "undecodable"; docs/data.md lists all
    detail: str = ""

    def __post_init__(self):
        # Names of files may not be Unicode; printed and stored text must be.
        for field in dataclasses.fields(self):
            text = getattr(self, field.name)[:_LENGTH].encode("utf-8", "backslashreplace").decode("utf-8")
            text = re.sub(r" at 0x[0-9a-f]+", "", text)  # addresses of objects in Pillow's messages
            object.__setattr__(self, field.name, " ".join(text.split()))


class Unusable(ValueError):
    """Raised for a picture or caption that is left out; `reason` is the kind."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail

    def of(self, file: str) -> LeftOut:
        return LeftOut(file, self.reason, self.detail)


@dataclasses.dataclass
class Tally:
    """Counts of what was left out by reason, with the first of each reason."""

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    first: dict[str, LeftOut] = dataclasses.field(default_factory=dict)

    def add(self, row: LeftOut) -> None:
        self.counts[row.reason] += 1
        self.first.setdefault(row.reason, row)

    def summary(self, *, details: bool = False) -> str:
        """Return, for example, "undecodable: 2 (first: a.jpg), no caption: 1 (first: b.png)"."""
        more = {reason: f", {row.detail}" if details and row.detail else "" for reason, row in self.first.items()}
        return ", ".join(f"{r}: {num} (first: {self.first[r].file}{more[r]})" for r, num in self.counts.items())


class Shortlist:
    """Adds what is left out of one table to a list: the first MOST rows of each reason, and a count of the others."""

    MOST = 2**16

    def __init__(self, left_out: list[LeftOut]):
        self._left_out, self._counts = left_out, collections.Counter()

    def add(self, row: LeftOut) -> None:
        self._counts[row.reason] += 1
        if self._counts[row.reason] <= self.MOST:
            self._left_out.append(row)

    def close(self, table: str) -> None:
        """Add the counts of the other rows."""
        for reason, num in self._counts.items():
            if num > self.MOST:
                self._left_out.append(LeftOut(table, reason, f"{num - self.MOST} more rows"))


def write(path: Path, rows: Iterable[LeftOut]) -> Tally:
    """Write one JSON line for each row as it arrives; return their counts."""
    tally = Tally()
    with files.replacing(path) as file:
        for row in rows:
            tally.add(row)
            file.write((json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n").encode())
    return tally
