"""The choice of a run's initial parameters, those of another trained stage; and how options name such a stage.

Training begins at step 0 from its averaged parameters, those that are sampled, with a new optimiser and on any data.
With a `lora.rank` it trains adapters of them. `stage_dir.parameters` reads them.
"""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from imagen_jax.checks import Verbatim, require
from imagen_jax.config import StageConfig, flat
from imagen_jax.config.serialization import differ
from imagen_jax.progress import logger
from imagen_jax.stage_dir import checkpoint_files, parameters, pretrained
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.stage_dir.parameters import OPTION
from imagen_jax.storage import files, locations

# Fields that decide which arrays a network has, besides those of the network itself.
_ARCHITECTURE = ("image_channels", "control_channels", "text.width", "run.scan_blocks")
# Fields that decide what the network's inputs and outputs mean.
_MEANING = ("process.prediction", "text.encoder", "text.output", "text.model_hash")


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
    begun = begun_config(directory)
    if begun is not None:
        same = recorded(OPTION, config.init_from, begun.init_from, directory)
        config = dataclasses.replace(config, init_from=same)
        if checkpoint_files.list_steps(directory) and not config.lora.rank:  # they are not needed again
            return config
    rule, fix = f"be given with --lora.rank {config.lora.rank}", "name the stage that the adapters are for"
    require(config.init_from != "" or not config.lora.rank, OPTION, rule, Verbatim("no value"), fix)
    if not config.init_from:
        return config
    found = find(OPTION, config.init_from, config.name)
    _check_architecture(config, found.config, found.place)
    return dataclasses.replace(config, init_from=f"{found.place}@{found.which}")


def begun_config(directory: Path) -> StageConfig | None:
    """Return the configuration of the stage that has begun in `directory`, None if none has."""
    return stage_dir.read_config(directory) if files.exists(directory / stage_dir.CONFIG_FILE) else None


def recorded(option: str, given: str, begun: str, directory: Path) -> str:
    """Return `begun`, what a stage has begun with, if an option names the same or is left out.

    Args:
      option: as the user types it.
      given, begun: values of the option: as given, and as the stage in `directory` records it.
      directory: of the stage.
    """
    source, which = parameters.split(given, option)
    begun_place, begun_which = parameters.split(begun, option)
    alike = lambda place: place and place.removesuffix(f"/{directory.name}")  # CASCADE and CASCADE/STAGE are the same
    rule = f"be {begun} or left out" if begun else "be left out"
    fix = "leave it out, or give another --workdir"
    is_same = source is None or (alike(source) == alike(begun_place) and which in (None, begun_which))
    require(is_same, option, f"{rule} to continue the stage in {directory}", Verbatim(given), fix)
    return begun


class Chosen(NamedTuple):
    """A trained stage that an option names.

    Attributes:
      place: as `find` is given it, without a checkpoint; absolute, or the name of a pretrained cascade.
      which: the step, or the SHA-256 of the weight file.
      config: its configuration.
      load: shapes, a ShapeDtypeStruct with its sharding for each parameter -> averaged parameters.
    """

    place: str
    which: int | str
    config: StageConfig
    load: Callable[[Any], Any]


def find(option: str, given: str, name: str) -> Chosen:
    """Return the trained stage that an option names.

    Args:
      option: as the user types it, for messages.
      given: "DIR", "DIR@STEP", or an exported cascade as `init_from` of a configuration names it.
      name: of the stage to take of a cascade, unless `given` says which.

    Raises:
      ValueError: there is no such stage or checkpoint.
    """
    place, which = parameters.split(given, option)
    found = parameters.find(place, name, option)
    rule = "be the directory of a trained stage, or DIR@STEP for one checkpoint of it"
    names = ", ".join(pretrained.directories())
    fix = f"pretrained are {names}" if names else ""
    if found is None and files.exists((inside := locations.location(place, option) / name) / stage_dir.CONFIG_FILE):
        fix = f"name the stage in it, {inside}"
    require(found is not None, option, rule, Verbatim(given), fix)
    which = max(found.checkpoints, default=None) if which is None else which
    got = Verbatim(f"{given}, which has those of {found.what} {found.checkpoints}")
    require(which in found.checkpoints, option, "name a checkpoint of the stage", got)
    return Chosen(place, which, found.config, partial(found.load, which))


def reopen(option: str, recorded: str, name: str) -> Chosen:
    """Return the trained stage that `find` found, by the "PLACE@CHECKPOINT" that is recorded of it.

    Raises:
      ValueError: it is not there any more.
    """
    place, which = parameters.split(recorded, option)
    found = parameters.find(place, name, option)
    require(found is not None, option, "be where it was when training began", Verbatim(place), "put it back")
    return Chosen(place, which, found.config, partial(found.load, which))


def _check_architecture(config: StageConfig, source: StageConfig, directory: str) -> None:
    """Raise a ValueError that names the fields in which the networks differ; sizes of images may."""
    ours, theirs = flat(config), flat(source)
    names = {name for name in ours | theirs if name.startswith("network.") and name != "network.dropout"}
    if config.is_super_resolution != source.is_super_resolution:
        names.add("low_res_size")
    differing = differences(ours, theirs, (*sorted(names), *_ARCHITECTURE))
    rule = f"be a stage with the architecture of stage {config.name}"
    fix = "give this stage the same options, or take another stage"
    require(not differing, OPTION, rule, Verbatim(f"{directory} with {'; '.join(differing)}"), fix)
    warn_of_meaning(OPTION, directory, differences(ours, theirs, _MEANING))


def warn_of_meaning(option: str, place: str, differing: list[str]) -> None:
    """Warn, in process 0, of fields in which a stage differs that do not prevent its use."""
    if differing and jax.process_index() == 0:
        logger.warning(f"{option} {place} was trained with {'; '.join(differing)}.")


def differences(ours: dict[str, Any], theirs: dict[str, Any], names: Iterable[str]) -> list[str]:
    """Return "NAME THEIRS instead of OURS" for each field of flat configurations that differs."""
    return [f"{n} {theirs.get(n)} instead of {ours.get(n)}" for n in names if differ(n, ours.get(n), theirs.get(n))]
