"""Data sets of records that a program already has."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator

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
    if not records_by_split:
        raise ValueError("records_by_split must have at least one split; got none.")
    streams = {split: iter(records) for split, records in records_by_split.items()}
    first = {split: next(records, None) for split, records in streams.items()}
    if empty := [split for split, record in first.items() if record is None]:
        raise ValueError(f"Split {empty[0]!r} must have records; got none: leave it out or give it records.")
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
            if set(record) != self.keys or self.keys - {"claims"} != {"image", "caption"}:
                raise ValueError(
                    f"{where} must have the keys image and caption, and claims in all records or in none; got "
                    f"{sorted(record)}."
                )
            if not isinstance(record["image"], bytes) or not record["image"]:
                raise ValueError(f"{where}: image must be encoded bytes; got {type(record['image'])}.")
            for key in self.keys - {"image"}:
                if not isinstance(record[key], str) or not record[key].strip():
                    raise ValueError(f"{where}: {key} must be text; got {record[key]!r}.")
            yield part.what, record
