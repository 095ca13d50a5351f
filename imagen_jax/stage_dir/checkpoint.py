"""Orbax checkpoints of a stage. The only file that imports orbax.

    checkpoints/<step>/        state (step, params, optimiser), ema_params, config, data: the position in the data, of
                               which, and the checksums of all arrays (`integrity`)
    damaged/<step>/            checkpoints that could not be read when training went on from an older one

`ema_params` is an item of its own, so that samplers load it alone. A step's directory appears by one
atomic rename once every item is written.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from imagen_jax import processes
from imagen_jax.config import StageConfig, differences, from_dict, read_json, to_dict
from imagen_jax.progress import logger
from imagen_jax.stage_dir import integrity
from imagen_jax.stage_dir.directory import CONFIG_FILE, DirectoryLock, absolute
from imagen_jax.storage import locations
from imagen_jax.structs import TrainState

_JSON_FILE = "metadata"  # in the folder of an item that is JSON, by Orbax
_LAST_FILE = "commit_success.txt"  # of a checkpoint in a bucket, by Orbax


class Checkpoints:
    """Saves and restores the train states of one stage; a context manager.

    Saving is asynchronous; leaving the context waits until everything is on disk.
    """

    def __init__(self, directory: str | Path, config: StageConfig, directory_lock: DirectoryLock | None = None):
        self._config, self._lock = config, directory_lock
        self._failed = False
        self._directory = absolute(directory)
        if_first = integrity.check_files if jax.process_index() == 0 else lambda folder: None
        processes.check_on_all_processes(lambda: if_first(self._directory / "checkpoints"))
        # What a killed run left half-written would take up the disk for ever.
        options = {"max_to_keep": config.run.keep_checkpoints, "cleanup_tmp_directories": True}
        try:
            self._manager = _manager(self._directory, **options)
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # of metadata of the wrong kinds
            raise ValueError(
                f"{self._directory / 'checkpoints'} must hold checkpoints that can be listed, but one has damaged "
                f"metadata ({_first_line(error)}): move it away."
            ) from error

    @property
    def latest_step(self) -> int | None:
        """The newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data_position: dict[str, Any]) -> None:
        """Starts to write a checkpoint of `state.step`; a step that is there already is left alone.

        Raises:
          OSError: this one, or the one before, cannot be written; says which is the last that is whole. Or the
            directory is not this run's any more.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        if self._lock is not None:
            try:
                processes.check_on_all_processes(self._lock.check)
            except (OSError, ValueError):
                self._failed = True
                raise
        tree = _items(state)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(tree["state"]),
            ema_params=ocp.args.StandardSave(tree["ema_params"]),
            data=ocp.args.JsonSave(integrity.make_record(step, data_position, tree)),
            config=ocp.args.JsonSave(to_dict(self._config)),
        )
        with self._writing():
            self._manager.save(step, args=args, force=True)

    def check(self) -> None:
        """Raises the OSError of a checkpoint that could not be written in the background."""
        with self._writing():
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise whatever they like for a full disk
            self._failed = True
            if processes.is_process_lost(error):
                raise
            whole = sorted(list_steps(self._directory))
            reason = _first_line(error)
            is_full = any(words in reason for words in ("No space", "quota", "too large"))
            raise OSError(
                f"{self._directory / 'checkpoints'} must take another checkpoint, but cannot ({reason}). "
                f"{f'The one of step {whole[-1]} is whole' if whole else 'None is there yet'}: "
                f"{'free some space' if is_full else 'put that right'}, and the same command continues."
            ) from error

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """The newest (state, data position) that can be read, laid out as `abstract` says.

        Newer ones are moved out of the way, into damaged/, once an older one has proved good.

        Raises:
          ValueError: none can be read; all stay where they are.
        """
        first_error, damaged = None, {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = _folder(self._directory, step)
            found, error = _attempt(_restored, folder, step, abstract)
            # Every process goes on with the same step.
            if processes.all_gather_int(error is None).all():
                state, record = found
                _, error = _attempt(integrity.verify, folder, _items(state), record)  # they add up their parts of it
                if processes.all_gather_int(error is None).all():
                    _say_if_unverified(folder, record)
                    self._move_away(damaged)
                    return state, record.position
            damaged[step] = error
            first_error = first_error or error
        raise ValueError(
            f"one of the checkpoints of steps {[*damaged]} must be readable by every process; none is. "
            f"{first_error or 'Another process says why.'}"
        ) from first_error

    def _move_away(self, damaged: dict[int, ValueError | None]) -> None:
        if not damaged:
            return
        aside = self._directory / "damaged"

        def move() -> None:
            aside.mkdir(exist_ok=True)
            for step, error in damaged.items():
                names = itertools.chain([str(step)], (f"{step}-{i}" for i in itertools.count(2)))
                target = next(aside / name for name in names if not (aside / name).exists())
                _rename(_folder(self._directory, step), target)
                logger.warning(
                    f"The checkpoint of step {step} cannot be read; moved to {target}. It was found that "
                    f"{error or 'another process could not read it'}"
                )

        processes.check_on_all_processes(lambda: move() if jax.process_index() == 0 else None)
        self._manager.reload()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        if self._failed or (kind is not None and jax.process_count() > 1):
            return  # other processes may never come to finish what is being written
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()


def read_ema_params(directory: Path, step: int, shapes: Any, config: StageConfig) -> Any:
    """Reads the averaged parameters of a checkpoint.

    Args:
      directory: of the stage.
      step: of the checkpoint.
      shapes: a ShapeDtypeStruct with a sharding for each array.
      config: of the stage.

    Raises:
      ValueError: the checkpoint is damaged or not there, or not of this configuration.
    """
    folder = _folder(directory, step)

    def read() -> tuple[Any, integrity.Record]:
        integrity.check_files(folder)
        _check_config(folder, config)
        return _item(folder, "ema_params", shapes), integrity.read_record(folder / "data" / _JSON_FILE, step)

    params, record = _read(folder, read)
    _check_dtypes(shapes, params)
    integrity.verify(folder, {"ema_params": params}, record)
    _say_if_unverified(folder, record)
    return params


def _check_config(folder: Path, config: StageConfig) -> None:
    """Compares what a checkpoint was trained with to the stage's own file, in all that sampling depends on."""
    file = folder / "config" / _JSON_FILE
    found = differences(from_dict(read_json(file)), config)
    found = [line for line in found if not line.startswith(("run.", "data.", "optim."))]
    sampling = [line for line in found if line.startswith("sampling.")]
    if len(found) > len(sampling):
        raise integrity.ChangedError(
            f"{file} and the {CONFIG_FILE} of the stage must agree; they differ in {'; '.join(found)}. Put back the "
            "one that has changed."
        )
    if sampling:
        logger.warning(
            f"The stage's {CONFIG_FILE} has other sampling options than its checkpoint {folder}: {'; '.join(sampling)}."
        )


def _manager(directory: Path, **options: Any) -> ocp.CheckpointManager:
    """Orbax's manager of the checkpoints in a stage's directory."""
    if str(directory).startswith("s3://"):
        _teach_orbax_s3()
        # S3 cannot rename: a checkpoint there is complete once it has its last file, as Orbax itself does on gs://.
        by_file = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE)
        options["atomicity_options"] = by_file
    return ocp.CheckpointManager(
        directory / "checkpoints", options=ocp.CheckpointManagerOptions(**options)
    )


def _teach_orbax_s3() -> None:
    """Orbax describes gs:// and local directories to TensorStore; this adds s3://, which TensorStore knows as well."""
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    if getattr(tensorstore_utils, "_imagen_jax", False):
        return
    normalize, kvstore = tensorstore_utils._normalize_path, gcs_utils.get_kvstore_for_gcs
    tensorstore_utils._use_gcs_driver = lambda directory: directory.startswith(("gs://", "s3://"))
    tensorstore_utils._normalize_path = lambda path: normalize(path).replace("s3:/", "s3://")
    gcs_utils.get_kvstore_for_gcs = lambda path: (
        locations.kvstore(path) if path.startswith("s3://") else kvstore(path)
    )
    tensorstore_utils._imagen_jax = True


def _rename(folder: Path, target: Path) -> None:
    if not locations.is_remote(folder):
        folder.rename(target)
        return
    from fsspec.core import url_to_fs

    fs, source = url_to_fs(str(folder))
    target = url_to_fs(str(target))[1]
    names = sorted(fs.find(source), key=lambda name: not name.endswith(f"/{_LAST_FILE}"))
    for name in names:
        fs.cp_file(name, target + name.removeprefix(source))
    for name in names:  # first the one without which it is no checkpoint
        fs.rm_file(name)


def list_steps(directory: Path) -> list[int]:
    """The steps of complete checkpoints, whatever state Orbax is in."""
    try:
        folders = [path for path in (directory / "checkpoints").iterdir() if path.name.isdigit()]
    except FileNotFoundError:
        return []
    if locations.is_remote(directory):
        folders = [path for path in folders if (path / _LAST_FILE).exists()]
    return [int(path.name) for path in folders]


def _restored(folder: Path, step: int, abstract: TrainState) -> tuple[TrainState, integrity.Record]:
    """(state, record) of a checkpoint, whose checksums are still to be verified; a ValueError if this process cannot
    read it.

    Not by the manager: it has the processes wait for each other, and one that cannot read never comes.
    """

    def read() -> tuple[TrainState, integrity.Record]:
        integrity.check_files(folder)
        wanted = _items(abstract)
        restored = {name: _item(folder, name, shapes) for name, shapes in wanted.items()}
        record = integrity.read_record(folder / "data" / _JSON_FILE, step)
        return TrainState(**restored["state"], ema_params=restored["ema_params"]), record

    state, record = _read(folder, read)
    _check_dtypes(_items(abstract), _items(state))
    return state, record


def _items(state: TrainState) -> dict[str, Any]:
    """The arrays of a state, or their shapes, by the item of a checkpoint that they are in."""
    return {
        "state": {name: getattr(state, name) for name in ("step", "params", "opt_state")},
        "ema_params": state.ema_params,
    }


def _item(folder: Path, name: str, wanted: Any) -> Any:
    if str(folder).startswith("s3://"):
        _teach_orbax_s3()
    return ocp.StandardCheckpointHandler().restore(folder / name, args=ocp.args.StandardRestore(wanted))


def _folder(directory: Path, step: int) -> Path:
    return directory / "checkpoints" / str(step)


def _say_if_unverified(folder: Path, record: integrity.Record) -> None:
    if record.arrays is None and jax.process_index() == 0:
        logger.warning(
            f"Checkpoint {folder} is of an earlier version and has no checksums: whether it is as it was saved cannot "
            "be told."
        )


def _attempt(read: Callable[..., Any], *args: Any) -> tuple[Any, ValueError | None]:
    """(read(*args), None), or (None, its ValueError)."""
    try:
        return read(*args), None
    except ValueError as error:
        return None, error


def _read(folder: Path, restore: Callable[[], Any]) -> Any:
    """Runs `restore`; whatever orbax raises about a damaged file becomes one clear line."""
    try:
        return restore()
    except integrity.ChangedError:
        raise
    except Exception as error:
        raise ValueError(
            f"checkpoint {folder} must be complete and of the stage's shapes, but cannot be read "
            f"({_first_line(error)}). Move it away to continue from the one before."
        ) from error


def _first_line(error: Exception) -> str:
    """The beginning and the end of an error's first line, where the reason stands."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:60]} ... {line[-130:]}"


def _check_dtypes(expected: Any, restored: Any) -> None:
    """Orbax raises on another shape but casts another dtype silently."""
    for (path, want), got in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(restored), strict=True):
        if want.dtype != got.dtype:
            raise ValueError(f"parameter {jax.tree_util.keystr(path)} must be {want.dtype}; got {got.dtype}.")
