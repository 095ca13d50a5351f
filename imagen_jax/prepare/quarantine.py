"""What was left out of a data set, and why: listed and counted, never fatal."""

from __future__ import annotations

import collections
import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path

from imagen_jax.storage import files

_LENGTH = 5000  # characters of a field: of names and details that an input makes long on purpose


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """One thing that was left out: `file` says where it lies, as "photo.jpg", "a.tar:photo.jpg", "a.parquet:7"."""

    file: str
    reason: str  # a kind, such as "undecodable"; docs/data.md has them all
    detail: str = ""

    def __post_init__(self):
        # Names of files need not be Unicode; what is printed and stored must be.
        for field in dataclasses.fields(self):
            text = getattr(self, field.name)[:_LENGTH].encode("utf-8", "backslashreplace").decode("utf-8")
            text = re.sub(r" at 0x[0-9a-f]+", "", text)  # of objects in Pillow's words: never the same twice
            object.__setattr__(self, field.name, " ".join(text.split()))


class Unusable(ValueError):
    """A picture or caption that is to be left out; `reason` is the kind."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail

    def of(self, file: str) -> LeftOut:
        return LeftOut(file, self.reason, self.detail)


@dataclasses.dataclass
class Tally:
    """Counts what was left out by its reason; holds of each only the first."""

    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    first: dict[str, LeftOut] = dataclasses.field(default_factory=dict)

    def add(self, row: LeftOut) -> None:
        self.counts[row.reason] += 1
        self.first.setdefault(row.reason, row)

    def summary(self, *, details: bool = False) -> str:
        """For example "undecodable: 2 (first: a.jpg), no caption: 1 (first: b.png)"; with the details of the first."""
        told = []
        for reason, num in self.counts.items():
            first = self.first[reason]
            more = f", {first.detail}" if details and first.detail else ""
            told.append(f"{reason}: {num} (first: {first.file}{more})")
        return ", ".join(told)


class Shortlist:
    """Adds what is left out of one table to a list: of each reason the first MOST rows, and then one line that counts
    the others."""

    MOST = 2**16

    def __init__(self, left_out: list[LeftOut]):
        self._left_out, self._counts = left_out, collections.Counter()

    def add(self, row: LeftOut) -> None:
        self._counts[row.reason] += 1
        if self._counts[row.reason] <= self.MOST:
            self._left_out.append(row)

    def close(self, table: str) -> None:
        """Adds the lines that count."""
        for reason, num in self._counts.items():
            if num > self.MOST:
                self._left_out.append(LeftOut(table, reason, f"{num - self.MOST} more rows"))


def write(path: Path, rows: Iterable[LeftOut]) -> Tally:
    """Writes one JSON line for each row, as they come, and counts them."""
    tally = Tally()
    with files.replacing(path) as file:
        for row in rows:
            tally.add(row)
            file.write((json.dumps(dataclasses.asdict(row), ensure_ascii=False) + "\n").encode())
    return tally
