"""Load trained stages and cascades, ready to sample."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_jax import checks, sharding, stage
from imagen_jax.checks import Verbatim, error, require, whole
from imagen_jax.config import IFUNetConfig, StageConfig, TextConfig
from imagen_jax.config.deepfloyd import ENCODER
from imagen_jax.config.validation import validate_cascade
from imagen_jax.progress import logger
from imagen_jax.stage_dir import (
    adapter_file,
    checkpoint_files,
    exported,
    exported_params,
    if_pipeline,
    parameters,
    pretrained,
)
from imagen_jax.stage_dir.best_sampling import apply_best_sampling
from imagen_jax.stage_dir.directory import CONFIG_FILE, absolute, read_config
from imagen_jax.storage import files

_REMOVED_WITHIN_S = 5  # the time that the removal of a checkpoint may take


def load_stage(directory: str | Path, step: int | None = None, *, mesh: Mesh | None = None) -> stage.Stage:
    """Load a stage with its averaged parameters, ready to sample; adapters are merged into what they are of.

    Args:
      directory: path or URL of one stage, as imagen-jax train and `save_stage` write it.
      step: of the checkpoint; None takes the newest.
      mesh: as of `load_cascade`.

    Raises:
      ValueError: there is no such stage or checkpoint, or it cannot be read.
    """
    place = absolute(directory)
    with files.one_line_errors(place, "listed"):
        is_cascade = not _is_stage(place) and (
            pretrained.is_name(directory) or exported.read(place) is not None or any(place.glob(f"*/{CONFIG_FILE}"))
        )
    got, fix = Verbatim(f"{directory}, a cascade"), "load it by load_cascade, or name one of its stages"
    require(not is_cascade, "directory", "be that of one stage", got, fix)
    params, config, _ = _read(directory, step, parameters.read, mesh)
    return stage.Stage(params=params, config=config)


def load_adapted(directory: str | Path) -> parameters.Adapted:
    """Load the newest averaged adapters of a stage that was trained with a `lora.rank`, and what they are of.

    Raises:
      ValueError: as `load_stage`.
    """
    return _read(directory, None, parameters.read_adapted, None)[0]


def _read(
    directory: str | Path, step: int | None, read: Callable[..., Any], mesh: Mesh | None
) -> tuple[Any, StageConfig, int]:
    """Return read(directory, step, shapes, config), the configuration without adapters, and the step."""
    directory = absolute(directory)
    if step is not None:
        whole("step", step)
    if mesh is not None:
        checks.instance("mesh", mesh, Mesh, "a mesh, as from sharding.make_mesh")
    config = read_config(directory)
    shapes = jax.eval_shape(lambda: stage.init(config, jax.random.key(0)))
    place = lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to)
    shapes = jax.tree.map(place, shapes, _places(shapes, mesh))
    while True:
        steps = checkpoint_files.list_steps(directory)
        if not steps or step not in (None, *steps):
            wanted = "a checkpoint" if step is None else f"the checkpoint of step {step}"
            fix = "" if steps else "train it with imagen-jax train"
            raise checks.error(directory / "checkpoints", f"hold {wanted}", Verbatim(f"steps {steps}"), fix)
        chosen = steps[-1] if step is None else step
        try:
            found = read(directory, chosen, shapes, config)
        except ValueError:
            # A run that still trains removes its older checkpoints, file by file, when it has newer ones.
            if not _is_superseded(directory, chosen, step):
                raise
        else:
            return found, parameters.merged_config(config), chosen


def _places(params: Any, mesh: Mesh | None) -> Any:
    """Return the sharding of each of `params`, arrays or shapes."""
    if mesh is not None:
        return sharding.state_sharding(params, mesh)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda _: device, params)


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


Places = str | Path | Sequence[str | Path]


def load_cascade(
    workdir: Places,
    *,
    best: bool = False,
    steps: Mapping[str, int | str] | None = None,
    return_steps: bool = False,
    adapters: Mapping[str | Path, float] | None = None,
    mesh: Mesh | None = None,
) -> tuple[stage.Stage, ...] | tuple[tuple[stage.Stage, ...], dict[str, int | str]]:
    """Load a trained cascade, base first, with the averaged parameters of each stage.

    Args:
      workdir: the name of a pretrained cascade, such as "emoji"; hf://OWNER/NAME or hf://OWNER/NAME@REVISION on the
        Hugging Face hub; or the path or URL of a directory, as `save_pretrained`, imagen-jax train and `save_cascade`
        write it, of which the newest checkpoint of each stage is taken. A stage may also be the directory of a
        pipeline of DeepFloyd IF in diffusers' layout, in `workdir` or as `workdir`. Several places make one cascade;
        each may then be the directory of a single stage as well.
      best: whether stages get the sampling options that imagen-jax sweep stored as the best.
      steps: checkpoints to load instead of the newest, by the name of the stage; for stages in weight files, which
        have one, the SHA-256 that these must have.
      return_steps: whether to return as well which were loaded, as `steps` takes it.
      adapters: by the path of an adapter's files (see `adapter_file`) the factor on it; they are merged into the
        parameters of the stages that they are for, in this order.
      mesh: parameters are loaded into their shards, each device its own, as `sharding.shard_params` places them; None:
        on the first device.

    Raises:
      ValueError: there is no stage, one cannot be read or is damaged, they do not follow each other, or an adapter
        cannot be read or is of other parameters.
    """
    stages = read_cascade(workdir, best=best)
    is_right = adapters is None or isinstance(adapters, Mapping)
    require(is_right, "adapters", "be a dict of factors by the path of the adapter", adapters)
    fitted = adapter_file.fit([each.config for each in stages], adapters or {})
    loaded = {name: load() for name, load in stage_loaders(workdir, steps, mesh).items()}
    stages = tuple(each.replace(params=loaded[each.config.name][0].params) for each in stages)
    stages = adapter_file.apply(stages, fitted)
    return (stages, {name: which for name, (_, which) in loaded.items()}) if return_steps else stages


def stage_loaders(
    workdir: Places, steps: Mapping[str, int | str] | None = None, mesh: Mesh | None = None
) -> dict[str, Callable[[], tuple[stage.Stage, int | str]]]:
    """Return functions that load the stages of `load_cascade` one by one, by name, base first.

    Each returns the stage with its averaged parameters, and which were loaded.

    Args:
      workdir, steps, mesh: as for `load_cascade`.

    Raises:
      ValueError: as `load_cascade`; what cannot be loaded shows when its function is called.
    """

    def load(config: StageConfig, read: _Read) -> tuple[stage.Stage, int | str]:
        params, which = read((steps or {}).get(config.name), mesh)
        return stage.Stage(params=params, config=parameters.merged_config(config)), which

    readers = _readers(workdir)
    names = [config.name for config, _ in readers]
    if mesh is not None:
        checks.instance("mesh", mesh, Mesh, "a mesh, as from sharding.make_mesh")
    is_right = steps is None or (isinstance(steps, Mapping) and set(steps) <= set(names))
    require(is_right, "steps", f"be a dict with keys among {', '.join(names)}, the stages", steps)
    return {config.name: partial(load, config, read) for config, read in readers}


def read_cascade(workdir: Places, *, best: bool = False) -> tuple[stage.Stage, ...]:
    """Return the stages of `load_cascade` with params=None, to check a request before anything is loaded."""
    configs = [parameters.merged_config(config) for config, _ in _readers(workdir)]
    stages = tuple(stage.Stage(params=None, config=config) for config in configs)
    if not best:
        return stages
    fix = "give one directory, or the options themselves"
    require(not isinstance(workdir, list | tuple), "best", "be left out with several directories", Verbatim("it"), fix)
    return apply_best_sampling(pretrained.resolve(workdir), stages)


# From what to load and the mesh, as `load_cascade` takes them, to (parameters, what was loaded).
_Read = Callable[[int | str | None, Mesh | None], tuple[Any, int | str]]
_Reader = tuple[StageConfig, _Read]


def _readers(workdir: Places) -> list[_Reader]:
    """Return the configuration of each stage of a cascade, base first, and a function that loads its parameters."""
    if not isinstance(workdir, list | tuple):
        return _in_order(_stages_in(pretrained.resolve(workdir)))
    require(len(workdir) > 0, "workdir", "be at least one directory", Verbatim("none"))
    found = []
    for each in workdir:
        place = pretrained.resolve(each)
        found += _stage_at(place) if _is_stage(place) else _stages_in(place)
    return _in_order(found)


def _in_order(readers: list[_Reader]) -> list[_Reader]:
    """Return the stages of a cascade, base first, after checking that they follow each other.

    Stages of DeepFloyd IF, and what follows them, read the captions of one encoder: the language model that lies
    beside the first of them that has one.
    """
    readers = sorted(readers, key=lambda reader: reader[0].image_size)
    ours = [isinstance(config.network, IFUNetConfig) for config, _ in readers]
    if any(ours):
        texts = [config.text for (config, _), is_if in zip(readers, ours, strict=True) if is_if]
        text = next((text for text in texts if text.encoder != ENCODER), texts[0])
        readers = [(_reading(config, text), read) for config, read in readers]
    validate_cascade(tuple(config for config, _ in readers))
    return readers


def _reading(config: StageConfig, text: TextConfig) -> StageConfig:
    """Return the configuration with the captions of another encoder, if they have the same width."""
    is_same = config.text == dataclasses.replace(text, model_hash=config.text.model_hash)
    if is_same or config.text.width != text.width:
        return config
    if not isinstance(config.network, IFUNetConfig):
        logger.warning(
            f"Stage {config.name} was trained with captions by {config.text.encoder}, and gets those by {text.encoder}."
        )
    return dataclasses.replace(config, text=text)


def _is_stage(directory: Path) -> bool:
    """Whether a directory is that of a single stage."""
    if exported.read(directory) is not None:
        return False
    return if_pipeline.is_pipeline(directory) or files.exists(directory / CONFIG_FILE)


def _stage_at(directory: Path) -> list[_Reader]:
    if if_pipeline.is_pipeline(directory):
        return [(if_pipeline.read_config(directory), partial(_load_pipeline, directory))]
    return [(read_config(directory), partial(_load_trained, directory))]


def _stages_in(directory: Path) -> list[_Reader]:
    """Return the stages of an exported cascade, of a pipeline, or in the directories in `directory`."""
    found = exported.read(directory)
    if found is not None:
        return [(config, partial(_load_exported, directory, found, config)) for config in found.configs]
    if if_pipeline.is_pipeline(directory):
        return _stage_at(directory)
    with files.one_line_errors(directory, "listed"):
        inside = {path.parent for path in directory.glob(f"*/{CONFIG_FILE}")}
        inside |= {path.parent for path in directory.glob(f"*/{if_pipeline.INDEX}")}
    if not inside:
        fix = "train one with imagen-jax train"
        if names := ", ".join(pretrained.directories()):
            fix += f", or name one of the pretrained cascades {names}"
        if files.exists(directory / CONFIG_FILE):
            read_config(directory)  # of no stage either: its own message
            parent = directory.parent if directory.name else directory / ".."
            fix = f"it is a stage itself; give the directory of its cascade, {parent}"
        raise ValueError(f"workdir must hold trained stages, but has none; got {directory}: {fix}.")
    return [reader for place in sorted(inside) for reader in _stage_at(place)]


def _load_exported(
    directory: Path, cascade: exported.Exported, config: StageConfig, which: int | str | None, mesh: Mesh | None
) -> tuple[Any, str]:
    _check_hash(which, config, f"the exported cascade {directory}")
    params = exported_params.read(directory, cascade, config.name, which)
    return jax.device_put(params, _places(params, mesh)), cascade.weights[config.name].sha256


def _load_pipeline(directory: Path, which: int | str | None, mesh: Mesh | None) -> tuple[Any, str]:
    """Load a stage of DeepFloyd IF, as bfloat16 where networks compute so."""
    config = if_pipeline.read_config(directory)
    _check_hash(which, config, f"the pipeline {directory}")
    return if_pipeline.load_recorded(directory, which, dtype=stage.compute_dtype(config).name, mesh=mesh)


def _check_hash(which: int | str | None, config: StageConfig, what: str) -> None:
    if isinstance(which, int):
        rule, fix = f"be of step {which}", "give the directory of the run that trained it"
        raise error(f"checkpoint of stage {config.name}", rule, Verbatim(what), fix)


def _load_trained(directory: Path, which: int | str | None, mesh: Mesh | None) -> tuple[Any, int]:
    if isinstance(which, str):
        rule, fix = f"be the weight file of sha256 {which}", "give the exported cascade"
        raise error("checkpoint", rule, Verbatim(f"the trained stage {directory}"), fix)
    params, _, step = _read(directory, which, parameters.read, mesh)
    return params, step
