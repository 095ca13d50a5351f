"""Initial parameters of a run: those of another trained stage, for fine-tuning.

`init_from` of a configuration is "DIR" or "DIR@STEP": a stage's directory, and which of its checkpoints; or "CASCADE"
or "CASCADE/STAGE": an exported cascade, by its directory or the name of a pretrained one, and which of its stages, by
default the one of the same name. Training begins at step 0 from its averaged parameters, those that are sampled, with a
new optimiser and on any data.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from imagen_jax.checks import Verbatim, require
from imagen_jax.config import StageConfig, flat
from imagen_jax.progress import logger
from imagen_jax.stage_dir import checkpoint, checkpoint_files, exported, pretrained
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.storage import files, locations

OPTION = "--init-from"
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
    source, which = _split(config.init_from)
    if files.exists(directory / stage_dir.CONFIG_FILE):
        begun = stage_dir.read_config(directory).init_from
        stage = begun if which is not None else begun.rpartition("@")[0]
        given = f"{source}@{which}" if which is not None else source
        rule = f"be {begun} or left out" if begun else "be left out"
        fix = "leave it out, or give another --workdir"
        is_same = source is None or given == stage
        require(is_same, OPTION, f"{rule} to continue the stage in {directory}", Verbatim(config.init_from), fix)
        config = dataclasses.replace(config, init_from=begun)
        source, which = _split(begun)
        if checkpoint_files.list_steps(directory):  # its initial parameters are not needed again
            return config
    if source is None:
        return config
    found = _open(source, config.name)
    rule = "be the directory of a trained stage, or DIR@STEP for one checkpoint of it"
    names = ", ".join(pretrained.directories())
    fix = f"pretrained are {names}" if names else ""
    require(found is not None, OPTION, rule, Verbatim(config.init_from), fix)
    which = max(found.checkpoints, default=None) if which is None else which
    got = Verbatim(f"{config.init_from}, which has those of {found.what} {found.checkpoints}")
    require(which in found.checkpoints, OPTION, "name a checkpoint of the stage", got)
    _check_architecture(config, found.config, source)
    return dataclasses.replace(config, init_from=f"{source}@{which}")


def load(config: StageConfig, shapes: Any) -> Any:
    """Return the averaged parameters that `config.init_from`, as from `resolve`, names.

    Called by every process of a run.

    Args:
      config: of the stage to be trained.
      shapes: a ShapeDtypeStruct with its sharding for each parameter.

    Raises:
      ValueError: the checkpoint is damaged, or is not there any more.
    """
    source, which = _split(config.init_from)
    found = _open(source, config.name)
    require(found is not None, OPTION, "be where it was when training began", Verbatim(source), "put it back")
    return found.load(which, shapes)


class _Source(NamedTuple):
    """A trained stage: its configuration, what it has averaged parameters of, and a function that reads them."""

    config: StageConfig
    what: str
    checkpoints: list[int | str]
    load: Callable[[int | str, Any], Any]


def _open(source: str, name: str) -> _Source | None:
    """Return the stage at a place that `_split` returns, of a cascade the one called `name`; None if there is none."""
    place = pretrained.resolve(source, OPTION)
    if (cascade := exported.read(place)) is None and files.exists(place / stage_dir.CONFIG_FILE):
        config = stage_dir.read_config(place)
        load = lambda step, shapes: checkpoint.read_ema_params(place, step, shapes, config)
        return _Source(config, "steps", sorted(checkpoint_files.list_steps(place)), load)
    parent, _, last = source.rpartition("/")
    if cascade is None and parent and last != "..":
        place, name = pretrained.resolve(parent, OPTION), last
        cascade = exported.read(place)
    if cascade is None:
        return None
    configs = {config.name: config for config in cascade.configs}
    got = Verbatim(f"{source} with stages {', '.join(configs)}")
    require(name in configs, OPTION, f"be a cascade with a stage {name}, or CASCADE/STAGE", got)

    def load(sha256: str, shapes: Any) -> Any:
        params = exported.read_params(place, cascade, name, sha256)
        put = lambda value, to: jax.make_array_from_callback(value.shape, to.sharding, lambda index: value[index])
        return jax.tree.map(put, params, shapes)

    return _Source(configs[name], "sha256", [cascade.weights[name].sha256], load)


def _split(init_from: str) -> tuple[str | None, int | str | None]:
    """Return (place, checkpoint) of "PLACE@CHECKPOINT" or "PLACE", None for what is not there.

    The place is absolute, or begins with the name of a pretrained cascade. The checkpoint is a step or a SHA-256.
    """
    if not init_from:
        return None, None
    place, at, which = init_from.rpartition("@")
    if not at or not re.fullmatch(r"\d+|[0-9a-f]{64}", which):
        place, which = init_from, None
    elif which.isdecimal() and len(which) < 64:
        which = int(which)
    if pretrained.is_name(place) or pretrained.is_name(place.rpartition("/")[0]):
        return place, which
    return str(stage_dir.absolute(locations.location(place, OPTION))), which


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
