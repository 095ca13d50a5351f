"""Directories of data sets that are being written: lock, plan of the unfinished work, final files."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.checks import Verbatim, require
from imagen_jax.data import shards
from imagen_jax.prepare.quarantine import LeftOut
from imagen_jax.storage import files
from imagen_jax.storage.locks import acquire_file_lock

# Files of parts are joined until they have so many records or bytes; each joined record is copied once more.
JOINED_RECORDS = 4096
JOINED_BYTES = 2**25
_ROW = {"split", "file", "size", "records", "bytes"}  # of a file in NUMBER.json
_LOCK, _PLAN = "lock", "plan.json"


def resolved(directory: str | os.PathLike) -> Path:
    """Follow links to the directory of a data set.

    Raises:
      ValueError: the finished directory could not be renamed to it: it is a mount point, a link to itself, or in a
        directory that cannot be written to.
    """
    place = Path(os.path.realpath(directory))
    rule, got = "be a directory that the finished data set can replace", Verbatim(f"the mount point {directory}")
    fix = f"name a directory in it, such as {place / 'data'}"
    require(not os.path.ismount(place), "--output", rule, got, fix)
    got = Verbatim(f"a link to itself, {directory}")
    require(not os.path.islink(place), "--output", "be a directory", got, "name another")
    files.check_directory(unfinished(place), "--output")
    return place


def name_of(directory: str | os.PathLike) -> str:
    """Return a name for the data set in a directory: lower-case letters, digits and underscores."""
    stem = re.sub(r"[^a-z0-9]+", "_", Path(os.path.realpath(directory)).name.lower()).strip("_")
    return stem if stem[:1].isalpha() else f"data_{stem}"


def unfinished(directory: Path) -> Path:
    """Return the directory of the parts of an incomplete data set."""
    return directory.with_name(f".{directory.name}.unfinished")


@contextlib.contextmanager
def held(place: Path, directory: Path) -> Iterator[None]:
    """Lock the unfinished directory against other runs, until this block or this process ends."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = (place / _LOCK).open("w")
    except OSError as error:
        raise OSError(f"--output {directory} cannot be created: {error}.") from error
    with file:
        # The previous holder may have removed the directory while this process opened the file.
        is_held = acquire_file_lock(file, if_unsupported=True) and os.fstat(file.fileno()).st_nlink > 0
        got = Verbatim(f"{directory}, which another run is writing")
        require(is_held, "--output", "be free", got, "wait for its end")
        yield


def begin(place: Path, settings: dict) -> None:
    """Store the settings of the plan in the unfinished directory and remove incomplete files.

    Raises:
      ValueError: the directory holds the work of another plan.
    """
    settings = json.loads(json.dumps(settings))
    if (place / _PLAN).is_file():
        begun = _read_plan(place)
        differs = [key for key in begun | settings if begun.get(key) != settings.get(key)]
        changes = [f"{key}: {begun.get(key)} there, {settings.get(key)} now" for key in differs if key != "files"]
        told = f" ({'; '.join(changes)})" if changes else ""
        got = Verbatim(f"work with other {', '.join(differs)}{told}")
        fix = "repeat that command, or delete this directory to start anew"
        require(not differs, place, "hold unfinished work of this command and input", got, fix)
    else:
        files.write_json(place / _PLAN, settings)
    for path in place.rglob("*.tmp*"):
        path.unlink()


def _read_plan(place: Path) -> dict:
    try:
        begun = json.loads((place / _PLAN).read_text())
    except ValueError:
        begun = None
    damaged = Verbatim("damaged content")
    require(isinstance(begun, dict), place / _PLAN, "be JSON", damaged, f"delete {place} to start anew")
    return begun


def read_part(place: Path, number: int) -> dict:
    """Return the contents of NUMBER.json; raise ValueError if it is damaged."""
    path = place / f"{number:06d}.json"
    try:
        content = json.loads(path.read_text())
        for row in content["left_out"]:
            LeftOut(*row)
        if any(_ROW - set(row) for row in content["files"]):
            raise KeyError("something is missing")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} must list files; got damaged content ({error}): delete {place} to start anew."
        ) from error
    return content


def is_done(place: Path, number: int) -> bool:
    """Whether a part and its files are complete."""
    try:
        rows = read_part(place, number)["files"]
        return all((place / row["file"]).stat().st_size == row["size"] for row in rows)
    except (OSError, ValueError):
        return False  # it is written again


def assemble(
    rows: dict[str, list[dict]], place: Path, data: Path, name: str
) -> dict[str, list[shards.Shard]]:
    """Move the files of the parts of each split from `place` to `data`, small neighbours joined; return the shards."""
    final: dict[str, list[shards.Shard]] = {}
    for split, those in rows.items():
        for index, bundle in enumerate(_bundles(those)):
            target = data / shards.file_name(name, split, index)
            if not target.exists():
                _join([place / row["file"] for row in bundle], target)
            shard = shards.Shard(target, total(bundle, "records"), total(bundle, "bytes"))
            final.setdefault(split, []).append(shard)
    return final


def total(rows: list[dict], key: str) -> int:
    return sum(row[key] for row in rows)


def _bundles(rows: list[dict]) -> list[list[dict]]:
    """Return neighbouring files in bundles of JOINED_RECORDS or JOINED_BYTES, the last perhaps of fewer."""
    bundles: list[list[dict]] = [[]]
    for row in rows:
        if total(bundles[-1], "records") >= JOINED_RECORDS or total(bundles[-1], "bytes") >= JOINED_BYTES:
            bundles.append([])
        bundles[-1].append(row)
    return [bundle for bundle in bundles if bundle]


def _join(members: list[Path], target: Path) -> None:
    if len(members) == 1:
        os.rename(members[0], target)
        return
    temporary = target.with_name(f"{target.name}.tmp")
    writer = shards.SplitWriter(lambda index: temporary, max_records=2**62, max_bytes=2**62)
    for file in members:
        try:
            for record in shards.read_sound(file):
                if isinstance(record, RuntimeError):
                    raise record
                writer.add(record)
        except RuntimeError as error:
            raise OSError(f"{file} is damaged ({error}); delete {file.parent} to start anew.") from error
    writer.close()
    os.replace(temporary, target)
    files.sync_directory(target.parent)
    for file in members:
        file.unlink()
