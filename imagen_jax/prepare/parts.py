"""Write a data set in parts by several processes, so that an interrupted run continues.

The input is cut into parts that depend on nothing but the input. Each part is written on its own into a directory
beside the future data set, `.NAME.unfinished`: record files first, then NUMBER.json with their sizes and what was left
out. A part with its .json is complete; other files there are not. When all parts are complete, their files become the
shards of the data set, small neighbours are joined, and the directory is renamed to its final name. So the result is
the same for any number of processes and interruptions, and no finished part is written again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol

from imagen_jax.checks import require
from imagen_jax.data import checksums, shards, sources, workers
from imagen_jax.prepare import output, quarantine
from imagen_jax.prepare.output import unfinished
from imagen_jax.prepare.quarantine import LeftOut, Tally
from imagen_jax.storage import files

VERSION = 1  # of the contents of the unfinished directory
FEW = 256  # pictures up to which starting workers would take longer than the work
QUARANTINE = "quarantine.jsonl"
_WRITTEN, _DATA = "written", "data"


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of the input: `name` for messages, `num` pictures (0: unknown), `what` for the job."""

    name: str
    num: int
    what: Any


class Job(Protocol):
    """Makes the records of a part. It is sent to other processes, so it is small and can be pickled."""

    def examples(self, part: Part) -> Iterator[tuple[str, dict] | LeftOut]:
        """Yield (split, record) or what is left out, in order; the same at each call."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A data set to write."""

    job: Job  # makes the records
    parts: list[Part]  # of the input, in order
    splits: tuple[str, ...]
    keys: tuple[str, ...]  # of each record, of "image", "caption" and "claims"
    name: str
    description: str
    settings: dict  # JSON data; plans with the same settings make the same records
    left_out: list[LeftOut] | None = None  # found before the parts are read; None if nothing ever is
    some_empty: bool = False  # whether splits without records are omitted instead of refused
    is_resumable: bool = True  # whether finished parts are kept when a later one fails
    option: str = "--input"  # that names the input, for messages
    notice: str = ""  # attributions that the licences of the input ask for


def write(
    plan: Plan,
    directory: str | os.PathLike,
    *,
    num_workers: int = 1,
    finish: Callable[[Path], None] | None = None,
    progress: Callable[[Iterable, int, int], Iterable] = lambda parts, total, done: parts,
) -> tuple[dict[str, int], Tally]:
    """Write the data set of a plan, continuing an interrupted call with the same settings.

    Args:
      plan: what to write.
      directory: directory of the data set; must not exist or be empty.
      num_workers: number of processes; with one, one part or few pictures, this process does the work itself.
      finish: called with the unfinished directory of the data set, to add further files.
      progress: wraps the iterator of parts; also receives their total number and the number of finished ones.

    Returns:
      The number of records of each split, and what was left out, which is listed in quarantine.jsonl.

    Raises:
      ValueError: the directory is taken, is being written or cannot be made, was begun with other settings, or a split
        would be empty. Nothing remains only if no picture at all can be used.
      OSError: the disk is full, a worker was killed, or a part failed. Finished parts remain.
    """
    directory = output.resolved(directory)
    sources.check_free(directory)
    shards.check_names(plan.name, plan.splits)
    _check_before(plan)
    place = unfinished(directory)
    with output.held(place, directory):
        sources.check_free(directory)  # another run may have finished it meanwhile
        output.begin(place, plan.settings | {"version": VERSION, "parts": len(plan.parts)})
        try:
            _write_parts(plan, place, num_workers, progress)
            counts, tally = _counts(plan, place)
            if not any(counts.values()):  # nothing is lost
                shutil.rmtree(place, ignore_errors=True)
                reasons = f"left out {tally.summary(details=True)}" if tally.counts else "there are no pictures"
                raise ValueError(f"{plan.option} must have a usable picture for {directory}; got none: {reasons}.")
            _check_splits(plan, place, counts, tally)
            (place / _WRITTEN).touch()
            files.sync_directory(place)  # before any file is moved
            data = place / _DATA
            data.mkdir(exist_ok=True)
            written = output.assemble(_rows(plan, place), place, data, plan.name)
            shards.write_metadata(data, plan.name, plan.description, plan.keys, written)
            if plan.left_out is not None:
                quarantine.write(data / QUARANTINE, _left_out(plan, place))
            if finish is not None:
                finish(data)
            checksums.write(data)
            for path in data.iterdir():
                if ".array_record-" not in path.name:  # record files are on the disk already
                    files.sync(path)
            files.sync_directory(data)
            os.rename(data, directory)  # fails if another process has filled it meanwhile
        except BaseException:
            if not plan.is_resumable:
                shutil.rmtree(place, ignore_errors=True)
            raise
        files.sync_directory(directory.parent)
        shutil.rmtree(place, ignore_errors=True)
    return counts, tally


def tidy(directory: Path) -> None:
    """Remove the unfinished directory of a run that was killed just after its data set got its final name."""
    directory = Path(os.path.realpath(directory))
    place = unfinished(directory)
    if sources.is_data_set(directory) and place.is_dir():
        with contextlib.suppress(ValueError, OSError), output.held(place, directory):
            shutil.rmtree(place, ignore_errors=True)


def _check_before(plan: Plan) -> None:
    """Raise ValueError if a split is expected to get less than half a picture, where their number is known."""
    num = sum(part.num for part in plan.parts)
    is_known = all(part.num for part in plan.parts) and not plan.some_empty
    for split in plan.splits if is_known else ():
        fraction = plan.settings.get(f"{split}_fraction")
        rule, fix = f"give the split {split!r} at least one of {num} pictures", f"give {_enough(num)}, or leave it out"
        require(not fraction or fraction * num >= 0.5, f"--{split}-fraction", rule, fraction, fix)


def _enough(num: int) -> str:
    """Suggest a fraction of `num` pictures. Pictures are chosen by chance: it leaves a split empty in 1 of 20 cases."""
    return f"for example {min(0.5, 3 / num):.2g}"


# ---- parts ----


def _write_parts(plan: Plan, place: Path, num_workers: int, progress) -> None:
    if (place / _WRITTEN).exists():
        return  # and their files may have been moved or joined already
    missing = [number for number in range(len(plan.parts)) if not output.is_done(place, number)]
    nums = [plan.parts[number].num for number in missing]
    num_workers = 1 if all(nums) and sum(nums) <= FEW else min(num_workers, len(missing))
    calls = {number: (plan.job, plan.parts[number], number, place) for number in missing}
    with contextlib.closing(_done(plan, calls, num_workers)) as done:  # if stopped early, the workers end now
        for _ in progress(done, len(plan.parts), len(plan.parts) - len(missing)):
            pass


def _done(plan: Plan, calls: dict[int, tuple], num_workers: int) -> Iterator[int]:
    """Write the missing parts here or in workers; yield the number of each finished one."""
    if num_workers <= 1:
        done = ((number, functools.partial(_write_part, *call)) for number, call in calls.items())
    else:
        done = ((number, future.result) for number, future in workers.run(_write_part, calls, num_workers))
    with contextlib.closing(done):
        for number, result in done:
            with _in_one_line(plan.parts[number]) if plan.is_resumable else contextlib.nullcontext():
                result()
            yield number


@contextlib.contextmanager
def _in_one_line(part: Part) -> Iterator[None]:
    """Raise any failure of a part as an OSError of one line."""
    try:
        yield
    except Exception as error:
        what = f"The part {part.name} failed, {' '.join(f'{type(error).__name__}: {error}'.split())[:500]}"
        fix = ""
        if isinstance(error, BrokenProcessPool):
            what = "A worker process was killed, perhaps for lack of memory"
            fix = " (with fewer --num-workers, if it was memory)"
        raise OSError(f"{what}; finished parts are kept, and the same command continues{fix}.") from error


def _write_part(job: Job, part: Part, number: int, place: Path) -> None:
    """Write the files of a part and, when they are complete, its NUMBER.json."""
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
        for path in place.glob(f"{number:06d}-*.tmp-{os.getpid()}"):  # makes room on a full disk
            path.unlink()
        raise


def _part_path(place: Path, number: int, split: str, suffix: str, index: int) -> Path:
    return place / f"{number:06d}-{split}-{index:03d}{suffix}"


# ---- the whole ----


def _left_out(plan: Plan, place: Path) -> Iterator[LeftOut]:
    yield from plan.left_out or ()
    for number in range(len(plan.parts)):
        yield from (LeftOut(*row) for row in output.read_part(place, number)["left_out"])


def _rows(plan: Plan, place: Path) -> dict[str, list[dict]]:
    """Return for each split the files of all parts, in order."""
    rows = {split: [] for split in plan.splits}
    for number in range(len(plan.parts)):
        for row in output.read_part(place, number)["files"]:
            rows[row["split"]].append(row)
    return rows


def _counts(plan: Plan, place: Path) -> tuple[dict[str, int], Tally]:
    """Return the number of records of each split, and what was left out."""
    tally = Tally()
    for row in _left_out(plan, place):
        tally.add(row)
    return {split: output.total(rows, "records") for split, rows in _rows(plan, place).items()}, tally


def _check_splits(plan: Plan, place: Path, counts: dict[str, int], tally: Tally) -> None:
    """Raise ValueError if a split has no records although each must; finished parts are kept."""
    for split, count in counts.items() if not plan.some_empty else ():
        if count:
            continue
        fraction = plan.settings.get(f"{split}_fraction")
        num = sum(counts.values())
        share = f" with --{split}-fraction {fraction:g}: give {_enough(num)}, or" if fraction else ":"
        reasons = f" (left out {tally.summary()})" if tally.counts else ""
        raise ValueError(
            f"Split {split!r} must have at least one record; got none of {num}{share} give more pictures. The finished "
            f"parts are kept for these settings and this input: to begin with others, delete {place}{reasons}."
        )
