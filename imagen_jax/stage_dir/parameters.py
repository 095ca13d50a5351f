"""Averaged parameters of trained stages: those in a stage's directory, and those that an `init_from` names.

`init_from` of a configuration is "DIR" or "DIR@STEP": a stage's directory, and which of its checkpoints; or "CASCADE"
or "CASCADE/STAGE": an exported cascade, by its directory or the name of a pretrained one, and which of its stages, by
default the one of the same name; or the directory of a pipeline of DeepFloyd IF. The checkpoints of a stage with a
`lora.rank` hold adapters of the parameters that its `init_from` names.
"""

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from imagen_jax import sharding
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import LoraConfig, StageConfig
from imagen_jax.models import lora
from imagen_jax.stage_dir import (
    checkpoint,
    checkpoint_files,
    checksums,
    exported,
    exported_params,
    if_pipeline,
    pretrained,
)
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.storage import files, locations

OPTION = "--init-from"


class Source(NamedTuple):
    """A trained stage: its configuration, what it has averaged parameters of, and a function that reads them."""

    config: StageConfig
    what: str
    checkpoints: list[int | str]
    load: Callable[[int | str, Any], Any]


class Adapted(NamedTuple):
    """Averaged adapters of a stage, and the parameters that they are of."""

    base: Any
    adapters: Any


def find(source: str, name: str, option: str = OPTION) -> Source | None:
    """Return the stage at a place that `split` returns, of a cascade the one called `name`; None if there is none.

    Args:
      source: the place.
      name: of the stage.
      option: by which the user named it, for messages.
    """
    place = pretrained.resolve(source, option)
    if if_pipeline.is_pipeline(place):
        hashes = [if_pipeline.weights_hash(place)]
        return Source(if_pipeline.read_config(place), "sha256", hashes, partial(_load_pipeline, place))
    if (cascade := exported.read(place)) is None and files.exists(place / stage_dir.CONFIG_FILE):
        config = stage_dir.read_config(place)
        load = lambda step, shapes: read(place, step, shapes, config)
        return Source(config, "steps", sorted(checkpoint_files.list_steps(place)), load)
    parent, _, last = source.rpartition("/")
    if cascade is None and parent and last != "..":
        place, name = pretrained.resolve(parent, option), last
        cascade = exported.read(place)
    if cascade is None:
        return None
    configs = {config.name: config for config in cascade.configs}
    got = Verbatim(f"{source} with stages {', '.join(configs)}")
    require(name in configs, option, f"be a cascade with a stage {name}, or CASCADE/STAGE", got)

    def load(sha256: str, shapes: Any) -> Any:
        params = exported_params.read(place, cascade, name, sha256)
        put = lambda value, to: jax.make_array_from_callback(value.shape, to.sharding, lambda index: value[index])
        return jax.tree.map(put, params, shapes)

    return Source(configs[name], "sha256", [cascade.weights[name].sha256], load)


def _load_pipeline(place: Path, sha256: str, shapes: Any) -> Any:
    """Return the parameters of a pipeline's network, born with the shardings of `shapes`."""
    mesh = getattr(jax.tree.leaves(shapes)[0].sharding, "mesh", None)
    params, _ = if_pipeline.load_recorded(place, sha256, mesh=mesh)
    return jax.tree.map(lambda leaf, to: jax.device_put(leaf, to.sharding), params, shapes)


def split(given: str, option: str = OPTION) -> tuple[str | None, int | str | None]:
    """Return (place, checkpoint) of "PLACE@CHECKPOINT" or "PLACE", None for what is not there.

    The place is absolute, or begins with the name of a pretrained cascade. The checkpoint is a step or a SHA-256.
    `option` is the one that `given` is the value of, for messages.
    """
    if not given:
        return None, None
    place, at, which = given.rpartition("@")
    if not at or not re.fullmatch(r"\d+|[0-9a-f]{64}", which):
        place, which = given, None
    elif which.isdecimal() and len(which) < 64:
        which = int(which)
    if pretrained.is_name(place) or pretrained.is_name(place.rpartition("/")[0]):
        return place, which
    return str(stage_dir.absolute(locations.location(place, option))), which


def initial(config: StageConfig, shapes: Any) -> Any:
    """Return the averaged parameters that `config.init_from`, "PLACE@CHECKPOINT", names.

    Called by every process of a run.

    Args:
      config: of the stage that begins from them, or has adapters of them.
      shapes: a ShapeDtypeStruct with its sharding for each parameter.

    Raises:
      ValueError: the checkpoint is damaged, has another hash, or is not there any more.
    """
    source, which = split(config.init_from)
    rule = f"be where it was when the training of stage {config.name} began"
    found = None if source is None else find(source, config.name)
    require(found is not None, OPTION, rule, Verbatim(source or "none"), "put it back")
    is_there = isinstance(which, str) or which in found.checkpoints
    got = Verbatim(f"{source} with those of {found.what} {found.checkpoints}")
    require(is_there, OPTION, f"have the checkpoint of step {which}, from which stage {config.name} began", got)
    return found.load(which, shapes)


def fingerprint(config: StageConfig, base: Any) -> int | None:
    """Return a checksum of the parameters that a stage has adapters of, which each of its checkpoints records.

    None for parameters that are themselves merged with adapters: their last digits depend on the device. Called by
    every process of a run.
    """
    found = find(split(config.init_from)[0], config.name)
    return None if found.config.lora.rank else checksums.of_json(checksums.of_arrays(base))


def read(directory: Path, step: int, shapes: Any, config: StageConfig) -> Any:
    """Return the averaged parameters of a stage's checkpoint, merged with what its adapters are of if it has some.

    Args:
      directory: of the stage.
      step: of the checkpoint.
      shapes: a ShapeDtypeStruct with its sharding for each parameter of the network.
      config: of the stage.

    Raises:
      ValueError: as `checkpoint.read_ema_params` and `read_adapted`.
    """
    if not config.lora.rank:
        return checkpoint.read_ema_params(directory, step, shapes, config)
    found = read_adapted(directory, step, shapes, config)
    merged = lora.merge(found.base, found.adapters, config.lora.scale)
    return jax.tree.map(lambda leaf, to: jax.device_put(leaf, to.sharding), merged, shapes)


def read_adapted(directory: Path, step: int, shapes: Any, config: StageConfig) -> Adapted:
    """Return the averaged adapters of a stage's checkpoint, and what they are of; arguments as for `read`.

    Raises:
      ValueError: the checkpoint is damaged, or the parameters that `config.init_from` names are gone or have changed.
    """
    make = partial(lora.init, rank=config.lora.rank, targets=config.lora.targets)
    own = jax.eval_shape(make, jax.random.key(0), shapes)
    place = jax.tree.leaves(shapes)[0].sharding
    mesh = getattr(place, "mesh", None)
    places = jax.tree.map(lambda _: place, own) if mesh is None else sharding.state_sharding(own, mesh)
    own = jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), own, places)
    adapters = checkpoint.read_ema_params(directory, step, own, config)
    base = initial(config, shapes)
    check_base(checkpoint.read_position(directory, step).get("base"), fingerprint(config, base), config)
    return Adapted(base, adapters)


def check_base(recorded: int | None, found: int | None, config: StageConfig) -> None:
    """Raise a ValueError if the fingerprint in a stage's checkpoint is not that of what its `init_from` names now."""
    is_same = recorded is None or found == recorded
    rule = f"hold the parameters that the adapters of stage {config.name} were trained on"
    got = Verbatim(f"others in {config.init_from}")
    require(is_same, OPTION, rule, got, "put those of then back")


def merged_config(config: StageConfig) -> StageConfig:
    """Return the configuration of a stage whose adapters are merged: like that of any other stage."""
    return dataclasses.replace(config, lora=LoraConfig())
