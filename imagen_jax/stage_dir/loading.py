"""Load trained stages and cascades, ready to sample."""

import time
from collections.abc import Mapping
from pathlib import Path

import jax

from imagen_jax import stage
from imagen_jax.checks import whole
from imagen_jax.config import StageConfig
from imagen_jax.config.validation import validate_cascade
from imagen_jax.stage_dir import checkpoint, checkpoint_files
from imagen_jax.stage_dir.best_sampling import apply_best_sampling
from imagen_jax.stage_dir.directory import CONFIG_FILE, absolute, read_config
from imagen_jax.storage import files, locations

_REMOVED_WITHIN_S = 5  # the time that the removal of a checkpoint may take


def load_stage(directory: str | Path, step: int | None = None) -> stage.Stage:
    """Load a stage with its averaged parameters, ready to sample.

    Args:
      directory: path or URL of one stage, as imagen-jax train and `save_stage` write it.
      step: of the checkpoint; None takes the newest.

    Raises:
      ValueError: there is no such stage or checkpoint, or it cannot be read.
    """
    return _load_stage(directory, step)[0]


def _load_stage(directory: str | Path, step: int | None) -> tuple[stage.Stage, int]:
    """Return the stage, and the step of the checkpoint that was loaded."""
    directory = absolute(directory)
    if step is not None:
        whole("step", step)
    config = read_config(directory)
    shapes = jax.eval_shape(lambda: stage.init(config, jax.random.key(0)))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), shapes)
    while True:
        steps = checkpoint_files.list_steps(directory)
        if not steps or step not in (None, *steps):
            wanted = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            raise ValueError(
                f"{directory / 'checkpoints'} must hold {wanted}; got steps {steps}: train longer with "
                "imagen-jax train."
            )
        chosen = steps[-1] if step is None else step
        try:
            params = checkpoint.read_ema_params(directory, chosen, shapes, config)
        except ValueError:
            # A run that still trains removes its older checkpoints, file by file, when it has newer ones.
            if not _is_superseded(directory, chosen, step):
                raise
        else:
            return stage.Stage(params=params, config=config), chosen


def _is_superseded(directory: Path, chosen: int, wanted: int | None) -> bool:
    """Whether a run removed a checkpoint that cannot be read: it has a newer one, and if a step is wanted, that step
    disappears."""
    if max(checkpoint_files.list_steps(directory), default=chosen) == chosen:
        return False
    if wanted is None:
        return True
    end = time.monotonic() + _REMOVED_WITHIN_S
    while time.monotonic() < end:
        if wanted not in checkpoint_files.list_steps(directory):
            return True
        time.sleep(0.2)
    return False


def load_cascade(
    workdir: str | Path,
    *,
    best: bool = False,
    steps: Mapping[str, int] | None = None,
    return_steps: bool = False,
) -> tuple[stage.Stage, ...] | tuple[tuple[stage.Stage, ...], dict[str, int]]:
    """Load all trained stages in `workdir`, base first, from the newest checkpoint of each.

    Args:
      workdir: path or URL with a directory for each stage, as imagen-jax train and `save_cascade` write it.
      best: whether stages get the sampling options that imagen-jax sweep stored as the best.
      steps: checkpoints to load instead of the newest, by the name of the stage.
      return_steps: whether to return the steps of the loaded checkpoints as well, by the name of the stage.

    Raises:
      ValueError: there is no stage, one cannot be read, or they do not follow each other.
    """
    stages, loaded = read_cascade(workdir, best=best), {}
    for directory, config in _stage_configs(workdir).items():
        loaded[config.name] = _load_stage(directory, (steps or {}).get(config.name))
    stages = tuple(each.replace(params=loaded[each.config.name][0].params) for each in stages)
    return (stages, {name: step for name, (_, step) in loaded.items()}) if return_steps else stages


def read_cascade(workdir: str | Path, *, best: bool = False) -> tuple[stage.Stage, ...]:
    """Return the stages of `load_cascade` with params=None, to check a request before anything is loaded."""
    stages = tuple(stage.Stage(params=None, config=config) for config in _stage_configs(workdir).values())
    return apply_best_sampling(locations.location(workdir, "--workdir"), stages) if best else stages


def _stage_configs(workdir: str | Path) -> dict[Path, StageConfig]:
    """Return the configuration of each trained stage in `workdir` by its directory, base first."""
    workdir = locations.location(workdir, "--workdir")
    with files.one_line_errors(workdir, "listed"):
        directories = sorted(path.parent for path in workdir.glob(f"*/{CONFIG_FILE}"))
    if not directories:
        fix = "train one with imagen-jax train"
        if files.exists(workdir / CONFIG_FILE):
            parent = workdir.parent if workdir.name else workdir / ".."
            fix = f"it is a stage itself; give the directory of its cascade, {parent}"
        raise ValueError(f"workdir must hold trained stages, but has none; got {workdir}: {fix}.")
    configs = {directory: read_config(directory) for directory in directories}
    ordered = sorted(directories, key=lambda directory: configs[directory].image_size)
    validate_cascade(tuple(configs[directory] for directory in ordered))
    return {directory: configs[directory] for directory in ordered}
