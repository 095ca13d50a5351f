"""Orbax checkpoints of a stage. The only file that imports orbax.

A stage's directory holds

    config.json                the stage's configuration
    checkpoints/<step>/        state (step, params, optimiser), ema_params, config, data: the position in the data, of
                               which, and the checksums of all arrays (`integrity`)
    damaged/<step>/            checkpoints that could not be read when training went on from an older one
    .lock                      held by the run that trains here

The directory is a path of `locations.location`, so it may lie in a bucket.

`ema_params` is an item of its own, so that samplers load it alone. A step's directory appears by one
atomic rename once every item is written.
"""

import contextlib
import dataclasses
import itertools
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import orbax.checkpoint as ocp

from imagen_jax import files, locations, parallel, stage
from imagen_jax.checks import require, whole
from imagen_jax.config import (
    SamplingConfig,
    StageConfig,
    differences,
    from_dict,
    read_json,
    to_dict,
)
from imagen_jax.locks import BucketLock, lock
from imagen_jax.progress import logger
from imagen_jax.structs import TrainState
from imagen_jax.training import checksums, integrity
from imagen_jax.validation import validate, validate_cascade, validate_sampling

CONFIG_FILE = "config.json"
SAMPLING_FILE = "sampling.json"
LOCK_FILE = ".lock"
_JSON_FILE = "metadata"  # in the folder of an item that is JSON, by Orbax
_REMOVED_WITHIN_S = 5  # a checkpoint whose removal has begun
_LAST_FILE = "commit_success.txt"  # of a checkpoint in a bucket, by Orbax
_SEEN_WITHIN_S = 30  # a network file system may show a new file late


class Checkpoints:
    """Saves and restores the train states of one stage; a context manager.

    Saving is asynchronous; leaving the context waits until everything is on disk.
    """

    def __init__(self, directory: str | Path, config: StageConfig, hold: "Hold | None" = None):
        self._config, self._hold = config, hold
        self._failed = False
        self._directory = _absolute(directory)
        first = jax.process_index() == 0
        parallel.agree(lambda: integrity.check_files(self._directory / "checkpoints") if first else None)
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
        if self._hold is not None:
            try:
                parallel.agree(self._hold.check)
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
            if parallel.lost_another(error):
                raise
            whole = sorted(_steps_on_disk(self._directory))
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
            if parallel.from_all(error is None).all():
                state, record = found
                _, error = _attempt(integrity.verify, folder, _items(state), record)  # they add up their parts of it
                if parallel.from_all(error is None).all():
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

        parallel.agree(lambda: move() if jax.process_index() == 0 else None)
        self._manager.reload()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        if self._failed or (kind is not None and jax.process_count() > 1):
            return  # other processes may never come to finish what is being written
        with self._writing():
            self._manager.wait_until_finished()
            self._manager.close()


class Hold:
    """That a stage's directory is this run's alone, on one process; `alone` makes it."""

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
        """Raises an OSError if the directory was moved, removed or taken by another run since; a second call of
        `Checkpoints.save` would else create it anew, without its configuration."""
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
        is_free = parallel.agree(lambda: jax.process_index() > 0 or hold.acquire())
        if not parallel.from_all(is_free).all():
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
    needed, free = parallel.shares(abstract).total, shutil.disk_usage(directory).free
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


def load_stage(directory: str | Path, step: int | None = None) -> stage.Stage:
    """A stage with its averaged parameters, ready to sample.

    Args:
      directory: of one stage, as scripts/train.py writes it.
      step: which checkpoint; the newest if None.

    Raises:
      ValueError: there is no such stage or checkpoint, or it cannot be read.
    """
    return _load_stage(directory, step)[0]


def _load_stage(directory: str | Path, step: int | None) -> tuple[stage.Stage, int]:
    """`load_stage`, and the step of the checkpoint that was loaded."""
    directory = _absolute(directory)
    if step is not None:
        whole("step", step)
    config = read_config(directory)
    shapes = jax.eval_shape(lambda: stage.init(config, jax.random.key(0)))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)
    while True:
        steps = sorted(_steps_on_disk(directory))
        if not steps or step not in (None, *steps):
            wanted = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            raise ValueError(
                f"{directory / 'checkpoints'} must hold {wanted}; found steps {steps}. Train longer with "
                "scripts/train.py."
            )
        chosen = steps[-1] if step is None else step
        params, error = _attempt(_averaged, _folder(directory, chosen), chosen, shapes, config)
        if error is None:
            return stage.Stage(params=params, config=config), chosen
        # A run that goes on removes its older checkpoints, file by file, when it has newer ones.
        if not _is_superseded(directory, chosen, step):
            raise error


def _averaged(folder: Path, step: int, shapes: Any, config: StageConfig) -> Any:
    """The averaged parameters of a checkpoint; a ValueError if it is damaged, or not of this configuration."""

    def read() -> tuple[Any, integrity.Record]:
        integrity.check_files(folder)
        _check_config(folder, config)
        return _item(folder, "ema_params", shapes), integrity.read_record(folder / "data" / _JSON_FILE, step)

    params, record = _read(folder, read)
    _check_dtypes(shapes, params)
    integrity.verify(folder, {"ema_params": params}, record)
    _say_if_unverified(folder, record)
    return params


def _is_superseded(directory: Path, chosen: int, wanted: int | None) -> bool:
    """Whether another checkpoint is to be tried instead of one that cannot be read: a newer one, unless one step is
    wanted."""
    if max(_steps_on_disk(directory), default=chosen) == chosen:
        return False
    if wanted is None:
        return True
    end = time.monotonic() + _REMOVED_WITHIN_S
    while time.monotonic() < end:
        if wanted not in _steps_on_disk(directory):
            return True
        time.sleep(0.2)
    return False


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


def load_cascade(
    workdir: str | Path,
    *,
    best: bool = False,
    steps: Mapping[str, int] | None = None,
    return_steps: bool = False,
) -> tuple[stage.Stage, ...] | tuple[tuple[stage.Stage, ...], dict[str, int]]:
    """All trained stages in `workdir`, base first, from the newest checkpoint of each.

    Args:
      workdir: with a directory for each stage, as scripts/train.py writes it.
      best: sampling starts from the options that scripts/sweep.py stored as the best.
      steps: by the name of the stage, the checkpoint to load instead of the newest.
      return_steps: also return which checkpoint of each stage was loaded, by its name.

    Raises:
      ValueError: there is no stage, one cannot be read, or they do not follow each other.
    """
    stages, loaded = read_cascade(workdir, best=best), {}
    for directory, config in _stage_configs(workdir).items():
        loaded[config.name] = _load_stage(directory, (steps or {}).get(config.name))
    stages = tuple(each.replace(params=loaded[each.config.name][0].params) for each in stages)
    return (stages, {name: step for name, (_, step) in loaded.items()}) if return_steps else stages


def read_cascade(workdir: str | Path, *, best: bool = False) -> tuple[stage.Stage, ...]:
    """As `load_cascade`, without parameters (they are None): enough to check a request before anything is loaded."""
    stages = tuple(stage.Stage(params=None, config=config) for config in _stage_configs(workdir).values())
    return _with_best_sampling(locations.location(workdir, "--workdir"), stages) if best else stages


def _stage_configs(workdir: str | Path) -> dict[Path, StageConfig]:
    """The configuration of each trained stage in `workdir` by its directory, base first."""
    workdir = locations.location(workdir, "--workdir")
    with files.naming_errors(workdir, "listed"):
        directories = sorted(path.parent for path in workdir.glob(f"*/{CONFIG_FILE}"))
    if not directories:
        fix = "train one with scripts/train.py"
        if files.exists(workdir / CONFIG_FILE):
            parent = workdir.parent if workdir.name else workdir / ".."
            fix = f"it is a stage itself; give the directory of its cascade, {parent}"
        raise ValueError(f"workdir must hold trained stages, but has none; got {workdir}: {fix}.")
    configs = {directory: read_config(directory) for directory in directories}
    ordered = sorted(directories, key=lambda directory: configs[directory].image_size)
    validate_cascade(tuple(configs[directory] for directory in ordered))
    return {directory: configs[directory] for directory in ordered}


def save_best_sampling(workdir: str | Path, found: dict[str, SamplingConfig], about: dict[str, Any]) -> Path:
    """Stores sampling options by stage name beside the checkpoints; `about` says how they were found."""
    file = locations.location(workdir, "--workdir") / SAMPLING_FILE
    options = {name: to_dict(sampling) for name, sampling in found.items()}
    files.write_json(
        file, {"stages": options, "about": about, "checksum": checksums.of_json(options)}, indent=2
    )
    return file


def _with_best_sampling(workdir: Path, stages: tuple[stage.Stage, ...]) -> tuple[stage.Stage, ...]:
    file = workdir / SAMPLING_FILE
    if not files.exists(file):
        raise ValueError(f"{file} must exist for the best options: make it with scripts/sweep.py.")
    data = read_json(file)
    replaced = []
    try:
        found = data.get("stages") if isinstance(data, dict) else None
        require(isinstance(found, dict), "stages", "be a JSON object of sampling options by stage", found)
        if data.get("checksum", checksums.of_json(found)) != checksums.of_json(found):
            raise ValueError(
                "its options have changed since scripts/sweep.py stored them; remove the line of the checksum if you "
                "did that"
            )
        for each in stages:
            sampling = each.config.sampling
            if each.config.name in found:
                sampling = from_dict(found[each.config.name], SamplingConfig, each.config.name)
            validate_sampling(each.config, sampling, prefix=f"{each.config.name}.")
            replaced.append(each.replace(config=dataclasses.replace(each.config, sampling=sampling)))
    except ValueError as error:
        raise ValueError(f"{file} must hold sampling options, but does not: {error}") from error
    return tuple(replaced)


def _absolute(directory: str | Path) -> Path:
    place = locations.location(directory, "directory")
    return place if locations.is_remote(place) else place.absolute()


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


def _steps_on_disk(directory: Path) -> list[int]:
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
