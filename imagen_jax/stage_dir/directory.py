"""A stage's directory: its configuration, and the lock of the run that trains in it.

    config.json                the stage's configuration
    .lock                      locked by the run that trains here
    checkpoints/, damaged/     see `checkpoint`

Directories are paths of `locations.location`, so they may be in a bucket.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import jax

from imagen_jax import checks, processes, sharding
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import StageConfig, differences, from_dict, read_json, to_dict
from imagen_jax.config.validation import validate
from imagen_jax.storage import files, locations
from imagen_jax.storage.locks import BucketLock, acquire_file_lock
from imagen_jax.structs import TrainState

CONFIG_FILE = "config.json"
_BYTES_PER_ARRAY = 4096  # of a checkpoint, for what describes an array
LOCK_FILE = ".lock"
_VISIBLE_WITHIN_S = 30  # a network file system may show a new file late


class DirectoryLock:
    """One process's lock on a stage's directory; `lock_directory` acquires it for a whole run."""

    _file: IO | None = None
    _lock: BucketLock | None = None
    _identity: tuple[int, int] | None = None

    def __init__(self, directory: Path):
        self._directory = directory

    def acquire(self) -> bool:
        """Create the directory and acquire its lock; return False if another run holds it."""
        if locations.is_remote(self._directory):
            self._lock = BucketLock(str(self._directory / LOCK_FILE))
            return self._lock.acquire()
        file = self._directory / LOCK_FILE
        self._directory.mkdir(parents=True, exist_ok=True)
        if file.exists():
            files.check_regular(file)
        self._file = file.open("w")
        self._identity = _identity(self._directory)
        return acquire_file_lock(self._file, if_unsupported=True)

    def check(self) -> None:
        """Check that the directory still is this run's. Orbax would create a missing one again, without config.json.

        Raises:
          OSError: it was moved, removed or locked by another run.
        """
        if self._lock is not None:
            self._lock.check()
        is_moved = self._identity is not None and self._identity != _identity(self._directory)
        if is_moved or not (self._directory / CONFIG_FILE).exists():
            raise OSError(
                f"{self._directory} must stay where it is while a run trains in it; it was moved or removed, or has "
                f"lost its {CONFIG_FILE}: put it back, and the same command continues from its newest checkpoint."
            )

    def release(self) -> None:
        """Release the lock, if it is held."""
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
def lock_directory(directory: str | Path) -> Iterator[DirectoryLock]:
    """Keep other runs out of a stage's directory. Every process of a run calls it.

    Yields:
      the lock, for `Checkpoints`; only process 0 acquires it.

    Raises:
      ValueError: another run holds it.
    """
    directory = locations.location(directory, "--workdir")
    directory_lock = DirectoryLock(directory)
    # All processes raise, otherwise the others would wait for process 0 for ever.
    try:
        is_free = processes.check_on_all_processes(lambda: jax.process_index() > 0 or directory_lock.acquire())
        is_free = bool(processes.all_gather_int(is_free).all())
        rule, fix = "not be in use by another run", "wait for its end, or give another --workdir"
        require(is_free, directory, rule, Verbatim("a lock of one"), fix)
        yield directory_lock
    finally:
        directory_lock.release()


def check_space(directory: Path, abstract: TrainState) -> None:
    """Check that the disk of `directory` has room for a checkpoint of a state of the shapes `abstract`.

    Raises:
      ValueError: it has not.
    """
    if locations.is_remote(directory):
        return
    needed, free = sharding.byte_counts(abstract).total, shutil.disk_usage(directory).free
    needed += _BYTES_PER_ARRAY * len(jax.tree.leaves(abstract))
    rule, got = f"have room for a checkpoint of {needed / 2**20:.4g} MiB", Verbatim(f"{free / 2**20:.4g} MiB")
    fix = "free some space, or give another --workdir"
    require(free >= needed, f"the disk of {directory}", rule, got, fix)


def write_config(directory: str | Path, config: StageConfig) -> None:
    """Write config.json, or check that the one there is of the same stage. Every process of a run calls it.

    `config.run` and `config.sampling` may differ from those there, and replace them: no parameter depends on them.

    Raises:
      ValueError: the directory holds a stage of another configuration; lists the differences.
    """
    check_config(directory, config)
    file = locations.location(directory, "--workdir") / CONFIG_FILE
    if jax.process_index() == 0 and _stored_config(file) != config:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(file, to_dict(config), indent=2)


def check_config(directory: str | Path, config: StageConfig, unresolved: Sequence[str] = ()) -> None:
    """Check that the stage in a directory, if there is one, is that of a configuration.

    Args:
      directory: of the stage.
      config: `run` and `sampling` may differ from those there.
      unresolved: names of other fields that may differ.

    Raises:
      ValueError: it is another one; lists the differences.
    """
    found = _stored_config(locations.location(directory, "--workdir") / CONFIG_FILE)
    lines = differences(found, config) if found is not None else []
    may_differ = ("run.", "sampling.", *(f"{name}:" for name in unresolved))
    different = [line for line in lines if not line.startswith(may_differ)]
    fix = "give another --workdir, or the options that it was started with"
    if all(line.startswith("text.model_hash:") for line in different):
        fix = f"put back the weights of {config.text.encoder}, or give another --workdir"
    rule = "hold no stage of another configuration"
    require(not different, directory, rule, Verbatim("; ".join(different)), fix)


def check_visible_everywhere(directory: str | Path, config: StageConfig) -> None:
    """Check that this process sees what process 0 wrote by `write_config`, within half a minute.

    Raises:
      ValueError: it does not.
    """
    end = time.monotonic() + _VISIBLE_WITHIN_S
    index, fix = jax.process_index(), "give one on a shared file system or in a bucket"
    got = Verbatim(f"{directory}, in which process {index} does not find what process 0 has written")
    while jax.process_count() > 1:
        if _stored_config(locations.location(directory, "--workdir") / CONFIG_FILE) == config:
            return
        require(time.monotonic() <= end, "--workdir", "be a directory that every process sees", got, fix)
        time.sleep(0.5)


def read_config(directory: str | Path) -> StageConfig:
    """Return the configuration of the stage in `directory`.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    found = _stored_config(locations.location(directory, "directory") / CONFIG_FILE)
    got, fix = Verbatim(f"no {CONFIG_FILE}"), "train one with imagen-jax train"
    require(found is not None, directory, "hold a trained stage", got, fix)
    return found


def _stored_config(file: Path) -> StageConfig | None:
    """Return the configuration in a file; None if there is no such file."""
    if not files.exists(file):
        return None
    data = read_json(file)
    if isinstance(data, dict) and data.keys() >= {"format", "stages"}:
        got = Verbatim("that of an exported cascade")
        raise checks.error(file, "hold a stage's configuration", got, f"name {file.parent} itself as the cascade")
    try:
        return validate(from_dict(data))
    except ValueError as error:
        reason, got = str(error).rstrip("."), Verbatim("an error in it")
        raise checks.error(file, "hold a stage's configuration", got, reason) from error


def absolute(directory: str | Path) -> Path:
    """Return the absolute path of a stage's directory."""
    place = locations.location(directory, "directory")
    return place if locations.is_remote(place) else place.absolute()
