"""The choice of a run's initial parameters: those of another trained stage, for fine-tuning.

Training begins at step 0 from its averaged parameters, those that are sampled, with a new optimiser and on any data.
With a `lora.rank` it trains adapters of them. `stage_dir.parameters` reads them.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from imagen_jax.checks import Verbatim, require
from imagen_jax.config import StageConfig, flat
from imagen_jax.progress import logger
from imagen_jax.stage_dir import checkpoint_files, parameters, pretrained
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.stage_dir.parameters import OPTION
from imagen_jax.storage import files

# Fields that decide which arrays a network has, besides those of the network itself.
_ARCHITECTURE = ("image_channels", "control_channels", "text.width", "run.scan_blocks")
# Fields that decide what the network's inputs and outputs mean.
_MEANING = ("process.prediction", "text.encoder", "text.output")


def resolve(config: StageConfig, directory: Path) -> StageConfig:
    """Return `config` with `init_from` as "DIR@STEP" or "CASCADE/STAGE@SHA256": what the stage's config.json records.

    A stage that has begun keeps its own, whether or not the option is given again.

    Args:
      config: of the stage; `text.width` is set.
      directory: of the stage, which need not exist yet.

    Raises:
      ValueError: there is no such stage or checkpoint, its architecture differs, or the stage has begun from other
        initial parameters.
    """
    source, which = parameters.split(config.init_from)
    if files.exists(directory / stage_dir.CONFIG_FILE):
        begun = stage_dir.read_config(directory).init_from
        stage = begun if which is not None else begun.rpartition("@")[0]
        given = f"{source}@{which}" if which is not None else source
        rule = f"be {begun} or left out" if begun else "be left out"
        fix = "leave it out, or give another --workdir"
        is_same = source is None or given == stage
        require(is_same, OPTION, f"{rule} to continue the stage in {directory}", Verbatim(config.init_from), fix)
        config = dataclasses.replace(config, init_from=begun)
        source, which = parameters.split(begun)
        if checkpoint_files.list_steps(directory) and not config.lora.rank:  # they are not needed again
            return config
    rule, fix = f"be given with lora.rank {config.lora.rank}", "name the stage that the adapters are for"
    require(source is not None or not config.lora.rank, OPTION, rule, Verbatim("no value"), fix)
    if source is None:
        return config
    found = parameters.find(source, config.name)
    rule = "be the directory of a trained stage, or DIR@STEP for one checkpoint of it"
    names = ", ".join(pretrained.directories())
    fix = f"pretrained are {names}" if names else ""
    require(found is not None, OPTION, rule, Verbatim(config.init_from), fix)
    which = max(found.checkpoints, default=None) if which is None else which
    got = Verbatim(f"{config.init_from}, which has those of {found.what} {found.checkpoints}")
    require(which in found.checkpoints, OPTION, "name a checkpoint of the stage", got)
    _check_architecture(config, found.config, source)
    return dataclasses.replace(config, init_from=f"{source}@{which}")


def _check_architecture(config: StageConfig, source: StageConfig, directory: str) -> None:
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
