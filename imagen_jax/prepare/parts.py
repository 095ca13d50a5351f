"""Writes a data set in parts, by several processes, so that it can be killed and go on.

The input is cut into parts that depend on nothing but the input. Each is written on its own into a
directory beside the future data set, `.NAME.unfinished`: record files first, then NUMBER.json with
their lengths and what was left out. A part with its .json is done; whatever else lies there is not.
When all parts are done their files become the shards, small neighbours joined, and the data set
takes its place in one step. So the result is the same for any number of processes and any number of
interruptions, and nothing that is finished is ever written again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from imagen_jax.data import checksums, shards, sources, workers
from imagen_jax.prepare import output, quarantine
from imagen_jax.prepare.output import unfinished
from imagen_jax.prepare.quarantine import LeftOut, Tally
from imagen_jax.storage import files

VERSION = 1  # of what lies in the unfinished directory
# Files of parts are joined until they have so many records or bytes: each joined record is copied once more.
JOINED_RECORDS = 4096
JOINED_BYTES = 2**25
FEW = 256  # pictures up to which starting workers would take longer than the work
QUARANTINE = "quarantine.jsonl"
_ROW = {"split", "file", "size", "records", "bytes"}  # of a file in NUMBER.json
_WRITTEN, _DATA = "written", "data"


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of the input: `name` for messages, `num` pictures (0: unknown), `what` for the job."""

    name: str
    num: int
    what: Any


class Job(Protocol):
    """What makes records of a part; goes to other processes, so it is small and can be pickled."""

    def examples(self, part: Part) -> Iterator[tuple[str, dict] | LeftOut]:
        """(split, record) or what is left out, in order; the same at each call."""


@dataclasses.dataclass(frozen=True)
class Plan:
    job: Job
    parts: list[Part]
    splits: tuple[str, ...]  # in order
    keys: tuple[str, ...]  # of the records
    name: str  # of the data set
    description: str
    settings: dict  # JSON; plans with the same settings make the same records
    left_out: list[LeftOut] | None = None  # before the parts; None: nothing ever is
    some_empty: bool = False  # may splits get no records? They are then left out


def write(
    plan: Plan,
    directory: str | os.PathLike,
    *,
    num_workers: int = 1,
    finish: Callable[[Path], None] | None = None,
    progress: Callable[[Iterable, int, int], Iterable] = lambda parts, total, done: parts,
) -> tuple[dict[str, int], Tally]:
    """Writes the data set of a plan, going on where an earlier call with the same settings ended.

    Args:
      plan: what to write.
      directory: the data set's directory; must not exist or be empty.
      num_workers: processes; with one, one part or few pictures, this process does the work itself.
      finish: called with the unfinished directory of the data set, to add files of one's own.
      progress: wraps the iterator of parts; gets their total number and how many are done already.

    Returns:
      The number of records of each split, and what was left out, which is listed in quarantine.jsonl.

    Raises:
      ValueError: one line; the directory is taken, being written or cannot be made, was begun with
        other settings, or a split would be empty. Only if no picture at all is usable, nothing stays.
      OSError: one line; the disk is full, a worker was killed, a part failed. What is finished stays.
    """
    directory = output.resolved(directory)
    sources.check_free(directory)
    shards.check_names(plan.name, plan.splits)
    _check_before(plan)
    place = unfinished(directory)
    with output.held(place, directory):
        sources.check_free(directory)  # somebody may have finished it meanwhile
        output.begin(place, plan.settings | {"version": VERSION, "parts": len(plan.parts)})
        _write_parts(plan, place, num_workers, progress)
        counts, tally = _counts(plan, place)
        if not any(counts.values()):  # nothing was made that could be lost
            shutil.rmtree(place, ignore_errors=True)
            reasons = f"Left out: {tally.summary(details=True)}." if tally.counts else "There are none."
            raise ValueError(f"{directory} would be empty: no picture can be used. {reasons}")
        _check_splits(plan, place, counts, tally)
        (place / _WRITTEN).touch()
        files.sync_directory(place)  # before any file is moved
        data = place / _DATA
        data.mkdir(exist_ok=True)
        shards.write_metadata(data, plan.name, plan.description, plan.keys, _assemble(plan, place))
        if plan.left_out is not None:
            quarantine.write(data / QUARANTINE, _left_out(plan, place))
        if finish is not None:
            finish(data)
        checksums.write(data)
        _sync(data)
        os.rename(data, directory)  # fails if somebody else has filled it meanwhile
        files.sync_directory(directory.parent)
        shutil.rmtree(place, ignore_errors=True)
    return counts, tally


def tidy(directory: Path) -> None:
    """Removes what a run leaves that is killed just after its data set took its place."""
    directory = Path(os.path.realpath(directory))
    place = unfinished(directory)
    if sources.is_data_set(directory) and place.is_dir():
        with contextlib.suppress(ValueError, OSError), output.held(place, directory):
            shutil.rmtree(place, ignore_errors=True)


def _check_before(plan: Plan) -> None:
    """Raises ValueError if a split would get less than half a picture, as far as their number is known."""
    num = sum(part.num for part in plan.parts)
    for split in plan.splits if all(part.num for part in plan.parts) else ():
        fraction = plan.settings.get(f"{split}_fraction")
        if fraction and fraction * num < 0.5:
            raise ValueError(
                f"Split {split!r} would be empty: --{split}-fraction {fraction:g} of {num} pictures is less than one: "
                f"give {_enough(num)}, or leave it out."
            )


def _enough(num: int) -> str:
    """A fraction of `num` pictures that leaves a split empty in one of 20 cases: pictures fall into it by chance."""
    return f"for example {min(0.5, 3 / num):.2g}"


# ---- parts ----


def _write_parts(plan: Plan, place: Path, num_workers: int, progress) -> None:
    if (place / _WRITTEN).exists():
        return  # and their files may have been moved or joined already
    missing = [number for number in range(len(plan.parts)) if not _is_done(place, number)]
    nums = [plan.parts[number].num for number in missing]
    few = all(nums) and sum(nums) <= FEW
    if few or min(num_workers, len(missing)) <= 1:
        done = _run_here(plan, missing, place)
    else:
        done = _run_in_workers(plan, missing, place, min(num_workers, len(missing)))
    with contextlib.closing(done):  # stopped in between, the workers end now
        for _ in progress(done, len(plan.parts), len(plan.parts) - len(missing)):
            pass


def _run_here(plan: Plan, missing: list[int], place: Path) -> Iterator[int]:
    for number in missing:
        with _told(plan.parts[number]):
            _write_part(plan.job, plan.parts[number], number, place)
        yield number


def _run_in_workers(plan: Plan, missing: list[int], place: Path, num_workers: int) -> Iterator[int]:
    calls = {number: (plan.job, plan.parts[number], number, place) for number in missing}
    with contextlib.closing(workers.run(_write_part, calls, num_workers)) as done:
        for number, future in done:
            with _told(plan.parts[number]):
                future.result()
            yield number


@contextlib.contextmanager
def _told(part: Part) -> Iterator[None]:
    """Makes one line of whatever fails in a part."""
    try:
        yield
    except BrokenProcessPool as error:
        raise OSError(
            "A worker process was killed, perhaps for want of memory; what is finished stays, and the "
            "same command goes on (with fewer --num-workers, if it was memory)."
        ) from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise OSError(
            f"The part {part.name} failed, {reason}; what is finished stays, and the same command goes on."
        ) from error


def _write_part(job: Job, part: Part, number: int, place: Path) -> None:
    """Writes the files of a part and, when they are whole, its NUMBER.json."""
    writers: dict[str, shards.SplitWriter] = {}
    left_out = []
    try:
        for item in job.examples(part):
            if isinstance(item, LeftOut):
                left_out.append(dataclasses.astuple(item))
                continue
            split, example = item
            if split not in writers:
                path = functools.partial(_part_path, place, number, split, f".tmp-{os.getpid()}")
                writers[split] = shards.SplitWriter(path)
            writers[split].add(shards.encode(example))
        rows = []
        for split, writer in sorted(writers.items()):
            writer.close()
            for i, shard in enumerate(writer.shards):
                path = _part_path(place, number, split, "", i)
                os.replace(shard.path, path)
                row = {"split": split, "file": path.name, "size": path.stat().st_size}
                rows.append(row | {"records": shard.records, "bytes": shard.bytes})
        files.write_json(place / f"{number:06d}.json", {"files": rows, "left_out": left_out})
    except BaseException:
        for path in place.glob(f"{number:06d}-*.tmp-{os.getpid()}"):  # a full disk has room again
            path.unlink()
        raise


def _part_path(place: Path, number: int, split: str, suffix: str, index: int) -> Path:
    return place / f"{number:06d}-{split}-{index:03d}{suffix}"


def _read_part(place: Path, number: int) -> dict:
    """What NUMBER.json says; raises ValueError if it is damaged."""
    path = place / f"{number:06d}.json"
    try:
        content = json.loads(path.read_text())
        for row in content["left_out"]:
            LeftOut(*row)
        if any(_ROW - set(row) for row in content["files"]):
            raise ValueError("something is missing")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); delete {place} to start anew.") from error
    return content


def _is_done(place: Path, number: int) -> bool:
    try:
        rows = _read_part(place, number)["files"]
        return all((place / row["file"]).stat().st_size == row["size"] for row in rows)
    except (OSError, ValueError):
        return False  # it is made again


# ---- the whole ----


def _left_out(plan: Plan, place: Path) -> Iterator[LeftOut]:
    yield from plan.left_out or ()
    for number in range(len(plan.parts)):
        yield from (LeftOut(*row) for row in _read_part(place, number)["left_out"])


def _counts(plan: Plan, place: Path) -> tuple[dict[str, int], Tally]:
    """The records of each split, and what was left out."""
    counts = dict.fromkeys(plan.splits, 0)
    for number in range(len(plan.parts)):
        for row in _read_part(place, number)["files"]:
            counts[row["split"]] += row["records"]
    tally = Tally()
    for row in _left_out(plan, place):
        tally.add(row)
    return counts, tally


def _check_splits(plan: Plan, place: Path, counts: dict[str, int], tally: Tally) -> None:
    """Raises ValueError if a split has no records where each must; the finished parts stay."""
    for split, count in counts.items() if not plan.some_empty else ():
        if count:
            continue
        fraction = plan.settings.get(f"{split}_fraction")
        num = sum(counts.values())
        share = f", with --{split}-fraction {fraction:g}: give {_enough(num)}" if fraction else ""
        reasons = f" Left out: {tally.summary()}." if tally.counts else ""
        raise ValueError(
            f"Split {split!r} would be empty: none of {num} captioned pictures falls into it"
            f"{share}, or give it more pictures. The finished parts are kept, but belong to these settings "
            f"and this input: to begin with others, delete {place}.{reasons}"
        )


def _sync(data: Path) -> None:
    """Waits for the metadata and the names: the shards are on the disk already."""
    for path in data.iterdir():
        if ".array_record-" not in path.name:
            files.sync(path)
    files.sync_directory(data)


def _assemble(plan: Plan, place: Path) -> dict[str, list[shards.Shard]]:
    """Moves the files of the parts to their final names, small neighbours joined."""
    by_split: dict[str, list[dict]] = {split: [] for split in plan.splits}
    for number in range(len(plan.parts)):
        for row in _read_part(place, number)["files"]:
            by_split[row["split"]].append(row)
    final: dict[str, list[shards.Shard]] = {}
    for split, rows in by_split.items():
        if not rows:
            continue
        final[split] = []
        for index, bundle in enumerate(_bundles(rows)):
            target = place / _DATA / shards.file_name(plan.name, split, index)
            if not target.exists():
                _join([place / row["file"] for row in bundle], target)
            records, size = (sum(row[key] for row in bundle) for key in ("records", "bytes"))
            final[split].append(shards.Shard(target, records, size))
    return final


def _records(file: Path) -> Iterator[bytes]:
    try:
        yield from shards.read(file)
    except RuntimeError as error:
        raise OSError(f"{file} is damaged ({error}); delete {file.parent} to start anew.") from error


def _bundles(rows: list[dict]) -> Iterator[list[dict]]:
    bundle: list[dict] = []
    for row in rows:
        bundle.append(row)
        records, size = (sum(row[key] for row in bundle) for key in ("records", "bytes"))
        if records >= JOINED_RECORDS or size >= JOINED_BYTES:
            yield bundle
            bundle = []
    if bundle:
        yield bundle


def _join(members: list[Path], target: Path) -> None:
    if len(members) > 1:
        temporary = target.with_name(f"{target.name}.tmp")
        writer = shards.SplitWriter(lambda index: temporary, max_records=2**62, max_bytes=2**62)
        for file in members:
            for record in _records(file):
                writer.add(record)
        writer.close()
        os.replace(temporary, target)
        files.sync_directory(target.parent)
        for file in members:
            file.unlink()
    else:
        os.rename(members[0], target)
