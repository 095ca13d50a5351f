"""Initial parameters of a run: those of another trained stage, for fine-tuning.

`init_from` of a configuration is "DIR" or "DIR@STEP": a stage's directory, and which of its checkpoints. Training
begins at step 0 from its averaged parameters, those that are sampled, with a new optimiser and on any data.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from imagen_jax.checks import Verbatim, require
from imagen_jax.config import StageConfig, flat
from imagen_jax.progress import logger
from imagen_jax.stage_dir import checkpoint, checkpoint_files
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.storage import files, locations

OPTION = "--init-from"
# Fields that decide which arrays a network has, besides those of the network itself.
_ARCHITECTURE = ("image_channels", "control_channels", "text.width", "run.scan_blocks")
# Fields that decide what the network's inputs and outputs mean.
_MEANING = ("process.prediction", "text.encoder", "text.output")


def resolve(config: StageConfig, directory: Path) -> StageConfig:
    """Return `config` with `init_from` as "DIR@STEP", DIR absolute: what the stage's config.json records.

    A stage that has begun keeps its own, whether or not the option is given again.

    Args:
      config: of the stage; `text.width` is set.
      directory: of the stage, which need not exist yet.

    Raises:
      ValueError: there is no such stage or checkpoint, its architecture differs, or the stage has begun from other
        initial parameters.
    """
    source, step = _split(config.init_from)
    if files.exists(directory / stage_dir.CONFIG_FILE):
        begun = stage_dir.read_config(directory).init_from
        stage = begun if step is not None else begun.rpartition("@")[0]
        given = f"{source}@{step}" if step is not None else str(source)
        rule = f"be {begun} or left out" if begun else "be left out"
        fix = "leave it out, or give another --workdir"
        is_same = source is None or given == stage
        require(is_same, OPTION, f"{rule} to continue the stage in {directory}", Verbatim(config.init_from), fix)
        config = dataclasses.replace(config, init_from=begun)
        source, step = _split(begun)
        if checkpoint_files.list_steps(directory):  # its initial parameters are not needed again
            return config
    if source is None:
        return config
    rule = "be the directory of a trained stage, or DIR@STEP for one checkpoint of it"
    require(files.exists(source / stage_dir.CONFIG_FILE), OPTION, rule, Verbatim(config.init_from))
    steps = sorted(checkpoint_files.list_steps(source))
    step = max(steps, default=None) if step is None else step
    found = Verbatim(f"{config.init_from}, which has those of steps {steps}")
    require(step in steps, OPTION, "name a checkpoint of the stage", found)
    _check_architecture(config, stage_dir.read_config(source), source)
    return dataclasses.replace(config, init_from=f"{source}@{step}")


def load(config: StageConfig, shapes: Any) -> Any:
    """Return the averaged parameters that `config.init_from`, as from `resolve`, names.

    Called by every process of a run.

    Args:
      config: of the stage to be trained.
      shapes: a ShapeDtypeStruct with its sharding for each parameter.

    Raises:
      ValueError: the checkpoint is damaged, or is not there any more.
    """
    source, step = _split(config.init_from)
    return checkpoint.read_ema_params(source, step, shapes, stage_dir.read_config(source))


def _split(init_from: str) -> tuple[Path | None, int | None]:
    """Return (directory, step) of "DIR@STEP" or "DIR", None for what is not there."""
    if not init_from:
        return None, None
    place, at, step = init_from.rpartition("@")
    if not (at and step.isdecimal()):
        place, step = init_from, None
    path = locations.location(place, OPTION)
    return stage_dir.absolute(path), step and int(step)


def _check_architecture(config: StageConfig, source: StageConfig, directory: Path) -> None:
    """Raise a ValueError that names the fields in which the networks differ; sizes of images may."""
    ours, theirs = flat(config), flat(source)
    names = {name for name in ours | theirs if name.startswith("network.") and name != "network.dropout"}
    if config.is_super_resolution != source.is_super_resolution:
        names.add("low_res_size")
    differing = _differences(ours, theirs, (*sorted(names), *_ARCHITECTURE))
    rule = f"be a stage with the architecture of stage {config.name}"
    fix = "give this stage the same options, or take another stage"
    require(not differing, OPTION, rule, Verbatim(f"{directory} with {'; '.join(differing)}"), fix)
    meaning = _differences(ours, theirs, _MEANING)
    if meaning and jax.process_index() == 0:
        logger.warning(f"{OPTION} {directory} was trained with {'; '.join(meaning)}.")


def _differences(ours: dict[str, Any], theirs: dict[str, Any], names: Iterable[str]) -> list[str]:
    return [f"{n} {theirs.get(n)} instead of {ours.get(n)}" for n in names if ours.get(n) != theirs.get(n)]
