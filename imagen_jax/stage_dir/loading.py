"""Load trained stages and cascades, ready to sample."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from imagen_jax import stage
from imagen_jax.checks import Verbatim, error, whole
from imagen_jax.config import StageConfig
from imagen_jax.config.validation import validate_cascade
from imagen_jax.stage_dir import adapter_file, checkpoint_files, exported, parameters, pretrained
from imagen_jax.stage_dir.best_sampling import apply_best_sampling
from imagen_jax.stage_dir.directory import CONFIG_FILE, absolute, read_config
from imagen_jax.storage import files

_REMOVED_WITHIN_S = 5  # the time that the removal of a checkpoint may take


def load_stage(directory: str | Path, step: int | None = None) -> stage.Stage:
    """Load a stage with its averaged parameters, ready to sample; adapters are merged into what they are of.

    Args:
      directory: path or URL of one stage, as imagen-jax train and `save_stage` write it.
      step: of the checkpoint; None takes the newest.

    Raises:
      ValueError: there is no such stage or checkpoint, or it cannot be read.
    """
    params, config, _ = _read(directory, step, parameters.read)
    return stage.Stage(params=params, config=config)


def load_adapted(directory: str | Path) -> parameters.Adapted:
    """Load the newest averaged adapters of a stage that was trained with a `lora.rank`, and what they are of.

    Raises:
      ValueError: as `load_stage`.
    """
    return _read(directory, None, parameters.read_adapted)[0]


def _read(directory: str | Path, step: int | None, read: Callable[..., Any]) -> tuple[Any, StageConfig, int]:
    """Return read(directory, step, shapes, config), the configuration without adapters, and the step."""
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
            found = read(directory, chosen, shapes, config)
        except ValueError:
            # A run that still trains removes its older checkpoints, file by file, when it has newer ones.
            if not _is_superseded(directory, chosen, step):
                raise
        else:
            return found, parameters.merged_config(config), chosen


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
    steps: Mapping[str, int | str] | None = None,
    return_steps: bool = False,
    adapters: Mapping[str | Path, float] | None = None,
) -> tuple[stage.Stage, ...] | tuple[tuple[stage.Stage, ...], dict[str, int | str]]:
    """Load a trained cascade, base first, with the averaged parameters of each stage.

    Args:
      workdir: the name of a pretrained cascade, such as "emoji"; hf://OWNER/NAME or hf://OWNER/NAME@REVISION on the
        Hugging Face hub; or the path or URL of a directory, as `save_pretrained`, imagen-jax train and `save_cascade`
        write it, of which the newest checkpoint of each stage is taken.
      best: whether stages get the sampling options that imagen-jax sweep stored as the best.
      steps: checkpoints to load instead of the newest, by the name of the stage; for an exported cascade, which has
        one of each stage, the SHA-256 that the weight file must have.
      return_steps: whether to return as well which were loaded, as `steps` takes it.
      adapters: by the path of an adapter's files (see `adapter_file`) the factor on it; they are merged into the
        parameters of the stages that they are for, in this order.

    Raises:
      ValueError: there is no stage, one cannot be read or is damaged, they do not follow each other, or an adapter
        cannot be read or is of other parameters.
    """
    stages = read_cascade(workdir, best=best)
    fitted = adapter_file.fit([each.config for each in stages], adapters or {})
    loaded = {name: load() for name, load in stage_loaders(workdir, steps).items()}
    stages = tuple(each.replace(params=loaded[each.config.name][0].params) for each in stages)
    stages = adapter_file.apply(stages, fitted)
    return (stages, {name: which for name, (_, which) in loaded.items()}) if return_steps else stages


def stage_loaders(
    workdir: str | Path, steps: Mapping[str, int | str] | None = None
) -> dict[str, Callable[[], tuple[stage.Stage, int | str]]]:
    """Return functions that load the stages of `load_cascade` one by one, by name, base first.

    Each returns the stage with its averaged parameters, and which were loaded.

    Args:
      workdir, steps: as for `load_cascade`.

    Raises:
      ValueError: as `load_cascade`; what cannot be loaded shows when its function is called.
    """
    found = _loaders(pretrained.resolve(workdir))
    return {config.name: partial(load, (steps or {}).get(config.name)) for config, load in found}


def read_cascade(workdir: str | Path, *, best: bool = False) -> tuple[stage.Stage, ...]:
    """Return the stages of `load_cascade` with params=None, to check a request before anything is loaded."""
    directory = pretrained.resolve(workdir)
    configs = [parameters.merged_config(config) for config, _ in _loaders(directory)]
    stages = tuple(stage.Stage(params=None, config=config) for config in configs)
    return apply_best_sampling(directory, stages) if best else stages


_Load = Callable[[int | str | None], tuple[stage.Stage, int | str]]


def _loaders(directory: Path) -> list[tuple[StageConfig, _Load]]:
    """Return the configuration of each stage of a cascade, base first, and a function that loads it.

    The function takes and returns which parameters to load, as `load_cascade` does; None: the newest.
    """
    found = exported.read(directory)
    if found is not None:
        return [(config, partial(_load_exported, directory, found, config)) for config in found.configs]
    return [(config, partial(_load_trained, place)) for place, config in _stage_configs(directory).items()]


def _load_exported(
    directory: Path, cascade: exported.Exported, config: StageConfig, which: int | str | None
) -> tuple[stage.Stage, str]:
    if isinstance(which, int):
        rule, got = f"be of step {which}", Verbatim(f"the exported cascade {directory}")
        raise error(f"checkpoint of stage {config.name}", rule, got, "give the directory of the run that trained it")
    params = exported.read_params(directory, cascade, config.name, which)
    loaded = stage.Stage(params=jax.device_put(params, jax.local_devices()[0]), config=config)
    return loaded, cascade.weights[config.name].sha256


def _load_trained(directory: Path, which: int | str | None) -> tuple[stage.Stage, int]:
    if isinstance(which, str):
        rule, fix = f"be the weight file of sha256 {which}", "give the exported cascade"
        raise error("checkpoint", rule, Verbatim(f"the trained stage {directory}"), fix)
    params, config, step = _read(directory, which, parameters.read)
    return stage.Stage(params=params, config=config), step


def _stage_configs(workdir: Path) -> dict[Path, StageConfig]:
    """Return the configuration of each trained stage in `workdir` by its directory, base first."""
    with files.one_line_errors(workdir, "listed"):
        directories = sorted(path.parent for path in workdir.glob(f"*/{CONFIG_FILE}"))
    if not directories:
        fix = "train one with imagen-jax train"
        if names := ", ".join(pretrained.directories()):
            fix += f", or name one of the pretrained cascades {names}"
        if files.exists(workdir / CONFIG_FILE):
            parent = workdir.parent if workdir.name else workdir / ".."
            fix = f"it is a stage itself; give the directory of its cascade, {parent}"
        raise ValueError(f"workdir must hold trained stages, but has none; got {workdir}: {fix}.")
    configs = {directory: read_config(directory) for directory in directories}
    ordered = sorted(directories, key=lambda directory: configs[directory].image_size)
    validate_cascade(tuple(configs[directory] for directory in ordered))
    return {directory: configs[directory] for directory in ordered}
