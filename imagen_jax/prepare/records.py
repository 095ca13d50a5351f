"""Data sets of records that a program already has."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator

from imagen_jax import checks
from imagen_jax.checks import Verbatim, require
from imagen_jax.prepare.parts import Part, Plan, write


def write_records(
    records_by_split: dict[str, Iterable[dict]], directory: str | os.PathLike, *, name: str, description: str
) -> dict[str, int]:
    """Write a data set from records in memory or from a generator; if anything fails, nothing remains.

    Args:
      records_by_split: for each split its records, each read once, in order:
        {"image": encoded bytes, "caption": str[, "claims": JSON str]}, all with the same keys.
      directory: directory of the data set; must not exist or be empty.
      name: of the data set and its files: lower-case letters, digits, underscores.
      description: a sentence for dataset_info.json.

    Returns:
      The number of records of each split.

    Raises:
      ValueError: the directory is taken, a name is invalid, a split is empty, or a record lacks something.
      OSError: the disk is full, or a similar failure.
    """
    require(bool(records_by_split), "records_by_split", "have at least one split", Verbatim("none"))
    streams = {split: iter(records) for split, records in records_by_split.items()}
    first = {split: next(records, None) for split, records in streams.items()}
    for split, record in first.items():
        fix = "leave it out or give it records"
        require(record is not None, f"Split {split!r}", "have records", Verbatim("none"), fix)
    keys = tuple(next(iter(first.values())))
    streams = {split: itertools.chain([first[split]], records) for split, records in streams.items()}
    parts = [Part(f"split {split}", 0, split) for split in streams]
    job = _Given(streams, frozenset(keys))
    plan = Plan(job, parts, tuple(streams), keys, name, description, settings={}, is_resumable=False)
    return write(plan, directory)[0]


@dataclasses.dataclass(frozen=True)
class _Given:
    """The job of checking records that exist already. Contents of a part: the name of a split."""

    streams: dict[str, Iterator[dict]]
    keys: frozenset[str]

    def examples(self, part: Part) -> Iterator[tuple[str, dict]]:
        for i, record in enumerate(self.streams[part.what]):
            where = f"Record {i} of split {part.what!r}"
            is_whole = set(record) == self.keys and self.keys - {"claims"} == {"image", "caption"}
            rule = "have the keys image and caption, and claims in all records or in none"
            require(is_whole, where, rule, sorted(record))
            image = record["image"]
            is_image = isinstance(image, bytes) and len(image) > 0
            require(is_image, f"{where}: image", "be encoded bytes", Verbatim(type(image)))
            for key in self.keys - {"image"}:
                checks.text(f"{where}: {key}", record[key])
            yield part.what, record
