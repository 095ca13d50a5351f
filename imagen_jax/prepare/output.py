"""Where a data set is written: its place on the disk, and the unfinished work beside it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.storage import files
from imagen_jax.storage.locks import lock

_LOCK, _PLAN = "lock", "plan.json"


def resolved(directory: str | os.PathLike) -> Path:
    """The directory that is meant, links followed.

    Raises:
      ValueError: one line; it could not take its place at the end, where a finished directory is
        renamed to it: it is a mount point, or lies where nothing may be written.
    """
    place = Path(os.path.realpath(directory))
    if os.path.ismount(place):
        raise ValueError(
            f"--output {directory} is a mount point, which cannot be replaced by the finished data set: "
            f"name a directory in it, such as {place / 'data'}."
        )
    if os.path.islink(place):
        raise ValueError(f"--output {directory} is a link that leads to itself.")
    files.check_directory(unfinished(place), "--output")
    return place


def unfinished(directory: Path) -> Path:
    """Where the parts of a data set lie until it is complete."""
    return directory.with_name(f".{directory.name}.unfinished")


@contextlib.contextmanager
def held(place: Path, directory: Path) -> Iterator[None]:
    """Keeps other runs out of the unfinished directory, however this one ends."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        file = (place / _LOCK).open("w")
    except OSError as error:
        raise OSError(f"--output {directory} cannot be created: {error}.") from error
    with file:
        # Whoever held it may have removed the directory while this process opened the file.
        if not lock(file, if_unsupported=True) or os.fstat(file.fileno()).st_nlink == 0:
            raise ValueError(f"{directory} is being written by another run: wait for its end.")
        yield


def begin(place: Path, settings: dict) -> None:
    """Makes the unfinished directory this plan's, or finds that it is; clears away what is half done."""
    settings = json.loads(json.dumps(settings))
    if (place / _PLAN).is_file():
        begun = _read_plan(place)
        differs = [key for key in begun | settings if begun.get(key) != settings.get(key)]
        if differs:
            raise ValueError(
                f"{place} holds the unfinished work of another command or input, with other "
                f"{', '.join(differs)}; repeat that one, or delete this directory to start anew"
                f"{_changes(begun, settings, differs)}."
            )
    else:
        files.write_json(place / _PLAN, settings)
    for path in place.rglob("*.tmp*"):
        path.unlink()


def _read_plan(place: Path) -> dict:
    try:
        begun = json.loads((place / _PLAN).read_text())
    except ValueError:
        begun = None
    if not isinstance(begun, dict):
        raise ValueError(f"{place / _PLAN} is damaged; delete {place} to start anew.")
    return begun


def _changes(begun: dict, settings: dict, differs: list[str]) -> str:
    """The old and new values, but not the hash of the files, which tells nobody anything."""
    told = [f"{key}: {begun.get(key)} there, {settings.get(key)} now" for key in differs if key != "files"]
    return f" ({'; '.join(told)})" if told else ""
