"""Checkpoints of a stage: save, restore and verify.

    checkpoints/<step>/        items: state (step, params, optimiser, auxiliary network), ema_params, config, and data:
                               the position in the data set, which data set, and the checksums of all arrays
                               (`integrity`)
    damaged/<step>/            checkpoints that could not be read when training continued from an older one

`ema_params` is an item of its own, so that samplers read it alone. `save_stage` writes checkpoints without `state`.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from imagen_jax import arrays, checks, processes
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import StageConfig, differences, from_dict, read_json, to_dict
from imagen_jax.progress import logger
from imagen_jax.stage_dir import checkpoint_files, integrity
from imagen_jax.stage_dir.checkpoint_files import folder_of, list_steps
from imagen_jax.stage_dir.directory import CONFIG_FILE, DirectoryLock, absolute
from imagen_jax.structs import TrainState


class Checkpoints:
    """Saves and restores the checkpoints of one stage; a context manager.

    Saving is asynchronous; leaving the context waits until everything is on disk. Every process of a run makes the
    same calls.

    Args:
      directory: of the stage, with a config.json.
      config: of the stage, stored in each checkpoint.
      directory_lock: what `lock_directory` yields; each save checks it.

    Raises:
      ValueError: the checkpoints there cannot be listed.
      OSError: one of their files is a pipe, a device or far too large.
    """

    def __init__(
        self, directory: str | Path, config: StageConfig, directory_lock: DirectoryLock | None = None
    ):
        self._config, self._lock = config, directory_lock
        self._failed = False
        self._directory = absolute(directory)
        if_first = integrity.check_files if jax.process_index() == 0 else lambda folder: None
        processes.check_on_all_processes(lambda: if_first(self._directory / "checkpoints"))
        try:
            self._manager = checkpoint_files.make_manager(self._directory, config.run.keep_checkpoints)
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # of metadata of the wrong kinds
            raise ValueError(
                f"{self._directory / 'checkpoints'} must hold checkpoints that can be listed; got one with damaged "
                f"metadata ({_first_line(error)}): move it away."
            ) from error

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, data_position: dict[str, Any]) -> None:
        """Start to write a checkpoint of `state.step`, unless there is one.

        Args:
          state: arrays, or trees of them.
          data_position: JSON values; its "next_index" is the step.

        Raises:
          ValueError: what could not be restored: a step that is no array, or another position than that of the step.
          OSError: this checkpoint, or the one before, cannot be written (names the last complete one), or the directory
            is no longer this run's.
        """
        fix = "make it by training.new_state, and change it by its replace"
        require(arrays.has_values(state.step), "state.step", "be an array, int32", state.step, fix)
        self._save(int(state.step), _items(state), data_position)

    def save_ema_params(self, step: int, params: Any) -> None:
        """Start to write a checkpoint of averaged parameters alone; otherwise as `save`."""
        self._save(step, {"ema_params": params}, {"next_index": step})

    def _save(self, step: int, tree: dict[str, Any], data_position: dict[str, Any]) -> None:
        if step in self._manager.all_steps():
            return
        if self._lock is not None:
            try:
                processes.check_on_all_processes(self._lock.check)
            except (OSError, ValueError):
                self._failed = True
                raise
        is_right = isinstance(data_position, dict) and data_position.get("next_index") == step
        rule = f'be a dict of JSON values with "next_index" {step}, the step, as of the loader\'s get_state'
        require(is_right and _is_json(data_position), "data_position", rule, data_position)
        record = integrity.make_record(step, data_position, tree)
        args = checkpoint_files.save_arguments(tree, {"data": record, "config": to_dict(self._config)})
        with self._write_errors():
            self._manager.save(step, args=args, force=True)

    def check(self) -> None:
        """Raise the OSError of a checkpoint that could not be written in the background."""
        with self._write_errors():
            self._manager.check_for_errors()

    @contextlib.contextmanager
    def _write_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise various types for a full disk
            self._failed = True
            if processes.is_process_lost(error):
                raise
            steps = list_steps(self._directory)
            reason = _first_line(error)
            is_full = any(words in reason for words in ("No space", "quota", "too large"))
            raise OSError(
                f"{self._directory / 'checkpoints'} must take another checkpoint, but cannot ({reason}). "
                f"{f'The one of step {steps[-1]} is whole' if steps else 'None is there yet'}: "
                f"{'free some space' if is_full else 'put that right'}, and the same command continues."
            ) from error

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Restore the newest checkpoint that can be read.

        Newer ones are moved into damaged/, once an older one has proved good.

        Args:
          abstract: a ShapeDtypeStruct with a sharding for each array.

        Returns:
          the state, with the frozen parameters None, and the data position that was saved with it.

        Raises:
          ValueError: none can be read; all stay where they are.
        """
        first_error, damaged = None, {}
        place, got = self._directory / "checkpoints", Verbatim("none")
        require(self.latest_step is not None, place, "hold a checkpoint", got, "save one, or begin with a new state")
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = folder_of(self._directory, step)
            found, error = _attempt(_restored, folder, step, abstract)
            # Every process continues with the same step.
            if processes.all_gather_int(error is None).all():
                state, record = found
                # All processes sum checksums of their shards.
                _, error = _attempt(integrity.verify, folder, _items(state), record)
                if processes.all_gather_int(error is None).all():
                    _warn_if_unverified(folder, record)
                    self._move_away(damaged)
                    return state, record.position
            damaged[step] = error
            first_error = first_error or error
        fix = str(first_error or "see the logs of the other processes").rstrip(".")
        name, rule = f"one of the checkpoints of steps {[*damaged]}", "be readable by every process"
        raise checks.error(name, rule, Verbatim("none"), fix) from first_error

    def _move_away(self, damaged: dict[int, ValueError | None]) -> None:
        if not damaged:
            return
        parent = self._directory / "damaged"

        def move() -> None:
            parent.mkdir(exist_ok=True)
            for step, error in damaged.items():
                names = itertools.chain([str(step)], (f"{step}-{i}" for i in itertools.count(2)))
                target = next(parent / name for name in names if not (parent / name).exists())
                checkpoint_files.move(folder_of(self._directory, step), target)
                logger.warning(
                    f"The checkpoint of step {step} cannot be read; moved to {target}. "
                    f"The reason: {error or 'another process could not read it.'}"
                )

        processes.check_on_all_processes(lambda: move() if jax.process_index() == 0 else None)
        self._manager.reload()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        if self._failed or (kind is not None and jax.process_count() > 1):
            return  # other processes may never finish their part of a checkpoint
        with self._write_errors():
            self._manager.wait_until_finished()
            self._manager.close()


def read_ema_params(directory: Path, step: int, shapes: Any, config: StageConfig) -> Any:
    """Return the averaged parameters of a stage's checkpoint; `shapes` has a ShapeDtypeStruct with a sharding for each.

    Raises:
      ValueError: the checkpoint is damaged, missing, or of another configuration.
    """
    folder = folder_of(directory, step)

    def read() -> tuple[Any, integrity.Record]:
        integrity.check_files(folder)
        _check_config(folder, config)
        params = checkpoint_files.restore_item(folder, "ema_params", shapes)
        return params, integrity.read_record(checkpoint_files.json_file(folder, "data"), step)

    params, record = _read(folder, read)
    _check_dtypes(shapes, params)
    integrity.verify(folder, {"ema_params": params}, record)
    _warn_if_unverified(folder, record)
    return params


def read_position(directory: Path, step: int) -> dict[str, Any]:
    """Return the data position that was saved with a stage's checkpoint."""
    return integrity.read_record(checkpoint_files.json_file(folder_of(directory, step), "data"), step).position


def _check_config(folder: Path, config: StageConfig) -> None:
    """Check that a checkpoint's configuration and the stage's agree in everything that affects sampling."""
    file = checkpoint_files.json_file(folder, "config")
    found = differences(from_dict(read_json(file)), config)
    found = [line for line in found if not line.startswith(("run.", "data.", "optim."))]
    sampling = [line for line in found if line.startswith("sampling.")]
    if len(found) > len(sampling):
        raise integrity.ChangedError(
            f"{file} and the {CONFIG_FILE} of the stage must agree; got {'; '.join(found)}: put back the one that "
            "has changed."
        )
    if sampling:
        logger.warning(
            f"The stage's {CONFIG_FILE} has other sampling options than its checkpoint {folder}: {'; '.join(sampling)}."
        )


def _restored(folder: Path, step: int, abstract: TrainState) -> tuple[TrainState, integrity.Record]:
    """Return the state and record of a checkpoint, whose checksums are not yet verified.

    Raises:
      ValueError: this process cannot read it.
    """

    def read() -> tuple[TrainState, integrity.Record]:
        integrity.check_files(folder)
        wanted = _items(abstract)
        restored = {name: checkpoint_files.restore_item(folder, name, wanted[name]) for name in wanted}
        record = integrity.read_record(checkpoint_files.json_file(folder, "data"), step)
        return TrainState(**restored["state"], ema_params=restored["ema_params"]), record

    state, record = _read(folder, read)
    _check_dtypes(_items(abstract), _items(state))
    return state, record


def _items(state: TrainState) -> dict[str, Any]:
    """Return the arrays of a state, or their shapes, by the item of a checkpoint that holds them."""
    names = ("step", "params", "opt_state", *(("auxiliary",) if state.auxiliary is not None else ()))
    return {"state": {name: getattr(state, name) for name in names}, "ema_params": state.ema_params}


def _warn_if_unverified(folder: Path, record: integrity.Record) -> None:
    if record.arrays is None and jax.process_index() == 0:
        logger.warning(
            f"Checkpoint {folder} was written by an earlier version, without checksums: changes since then cannot be "
            "detected."
        )


def _attempt(read: Callable[..., Any], *args: Any) -> tuple[Any, ValueError | None]:
    """Return (read(*args), None), or (None, its ValueError)."""
    try:
        return read(*args), None
    except ValueError as error:
        return None, error


def _read(folder: Path, restore: Callable[[], Any]) -> Any:
    """Return restore(); errors of Orbax about a damaged file become one line."""
    try:
        return restore()
    except integrity.ChangedError:
        raise
    except Exception as error:
        raise ValueError(
            f"checkpoint {folder} must be complete and of the stage's shapes; got an error when it was read "
            f"({_first_line(error)}): move it away to continue from the one before."
        ) from error


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _first_line(error: Exception) -> str:
    """Return the beginning and the end of an error's first line, which give the reason."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line if len(line) <= 200 else f"{line[:60]} ... {line[-130:]}"


def _check_dtypes(expected: Any, restored: Any) -> None:
    """Raise a ValueError for arrays of other types: Orbax refuses another shape, but casts another type silently."""
    for (path, want), got in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(restored), strict=True):
        name, found = f"parameter {jax.tree_util.keystr(path)}", Verbatim(got.dtype)
        require(want.dtype == got.dtype, name, f"be {want.dtype}", found)
