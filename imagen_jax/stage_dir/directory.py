"""A stage's directory: which configuration it belongs to, and which run holds it.

    config.json                the stage's configuration
    .lock                      held by the run that trains here
    checkpoints/, damaged/     see `checkpoint`

It is a path of `locations.location`, so it may lie in a bucket.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import jax

from imagen_jax import processes, sharding
from imagen_jax.config import StageConfig, differences, from_dict, read_json, to_dict
from imagen_jax.config.validation import validate
from imagen_jax.storage import files, locations
from imagen_jax.storage.locks import BucketLock, lock
from imagen_jax.structs import TrainState

CONFIG_FILE = "config.json"
LOCK_FILE = ".lock"
_SEEN_WITHIN_S = 30  # a network file system may show a new file late


class Hold:
    """One process's lock on a stage's directory; `alone` acquires it."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._file: IO | None = None
        self._lock: BucketLock | None = None
        self._identity: tuple[int, int] | None = None

    def acquire(self) -> bool:
        """Creates the directory and takes its lock; False if another run has it."""
        if locations.is_remote(self._directory):
            self._lock = BucketLock(str(self._directory / LOCK_FILE))
            return self._lock.acquire()
        file = self._directory / LOCK_FILE
        self._directory.mkdir(parents=True, exist_ok=True)
        if file.exists():
            files.check_regular(file)
        self._file = file.open("w")
        self._identity = _identity(self._directory)
        return lock(self._file, if_unsupported=True)

    def check(self) -> None:
        """Raises an OSError if the directory was moved, removed or taken by another run since; otherwise Orbax would
        create it anew, without its configuration."""
        if self._lock is not None:
            self._lock.check()
        is_moved = self._identity is not None and self._identity != _identity(self._directory)
        if is_moved or not (self._directory / CONFIG_FILE).exists():
            raise OSError(
                f"{self._directory} must stay where it is while a run trains in it; it was moved or removed, or has "
                f"lost its {CONFIG_FILE}: put it back, and the same command continues from its newest checkpoint."
            )

    def release(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._lock is not None:
            self._lock.release()


def _identity(directory: Path) -> tuple[int, int] | None:
    try:
        found = directory.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


@contextlib.contextmanager
def alone(directory: str | Path) -> Iterator[Hold | None]:
    """Keeps other runs out of a stage's directory; called by every process of a run.

    Yields the first process's `Hold`, for `Checkpoints`; in others one that holds nothing.

    Raises:
      ValueError: another run is in there.
    """
    directory = locations.location(directory, "--workdir")
    hold = Hold(directory)
    # All processes learn it, or those that wait for the first would never end.
    try:
        is_free = processes.agree(lambda: jax.process_index() > 0 or hold.acquire())
        if not processes.from_all(is_free).all():
            raise ValueError(
                f"{directory} is in use by another run: wait for its end, or give another --workdir."
            )
        yield hold
    finally:
        hold.release()


def check_space(directory: Path, abstract: TrainState) -> None:
    """Raises a ValueError if the disk of `directory` has no room for even one checkpoint of the state."""
    if locations.is_remote(directory):
        return
    needed, free = sharding.shares(abstract).total, shutil.disk_usage(directory).free
    if free < needed:
        raise ValueError(
            f"the disk of {directory} must have room for a checkpoint, {needed / 2**20:.4g} MiB; "
            f"{free / 2**20:.4g} MiB are free: free some space, or give another --workdir."
        )


def claim(directory: str | Path, config: StageConfig) -> None:
    """Makes the directory the stage's own, or checks that it already is.

    Called by every process of a run. Raises a ValueError that lists the differences if it holds a stage of
    another configuration; `config.run` and `config.sampling` may differ, since no parameter's value depends on
    them.
    """
    file = locations.location(directory, "--workdir") / CONFIG_FILE
    found = _stored_config(file)
    if found is not None:
        different = [
            line for line in differences(found, config) if not line.startswith(("run.", "sampling."))
        ]
        if different:
            raise ValueError(
                f"{directory} holds a stage of another configuration ({'; '.join(different)}). "
                "Give another --workdir, or the options that it was started with."
            )
    if jax.process_index() == 0 and found != config:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(file, to_dict(config), indent=2)


def check_shared(directory: str | Path, config: StageConfig) -> None:
    """Raises a ValueError in a process that does not see what the first one has written by `claim`."""
    end = time.monotonic() + _SEEN_WITHIN_S
    while jax.process_count() > 1:
        if _stored_config(locations.location(directory, "--workdir") / CONFIG_FILE) == config:
            return
        if time.monotonic() > end:
            raise ValueError(
                f"--workdir must be a directory that every process sees; process {jax.process_index()} does not find "
                f"in {directory} what process 0 has written there: give one on a shared file system or in a bucket."
            )
        time.sleep(0.5)


def read_config(directory: str | Path) -> StageConfig:
    """The configuration of the stage in `directory`."""
    found = _stored_config(locations.location(directory, "directory") / CONFIG_FILE)
    if found is None:
        raise ValueError(
            f"{directory} must hold a trained stage, but has no {CONFIG_FILE}. Train one with scripts/train.py."
        )
    return found


def _stored_config(file: Path) -> StageConfig | None:
    """The configuration in a file, None if there is no such file."""
    if not files.exists(file):
        return None
    data = read_json(file)
    try:
        return validate(from_dict(data))
    except ValueError as error:
        raise ValueError(f"{file} must hold a stage's configuration, but does not: {error}") from error


def absolute(directory: str | Path) -> Path:
    """Return the absolute path of a stage's directory."""
    place = locations.location(directory, "directory")
    return place if locations.is_remote(place) else place.absolute()
