"""The parameters of exported cascades, also of those that hold differences to another one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from imagen_jax import checks, stage
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import StageConfig
from imagen_jax.stage_dir import exported, pretrained, weight_file
from imagen_jax.stage_dir.exported import Difference, Exported


def read(directory: Path, cascade: Exported, name: str, sha256: str | None = None) -> Any:
    """Return the parameters of a stage of an exported cascade, a tree of float32 arrays on the host.

    Args:
      directory: of the cascade.
      cascade: as from `exported.read`.
      name: of the stage.
      sha256: that the weight file must have; None: the one in config.json.

    Raises:
      ValueError: the file is missing, has another hash, or does not fit the configuration; or the cascade that it holds
        the difference to is not there or another one.
    """
    weights = cascade.weights[name]
    if sha256 is not None and sha256 != weights.sha256:
        got = Verbatim(f"{weights.sha256} in {directory}")
        fix = "give the cascade of the recorded weights"
        raise checks.error(f"weights of stage {name}", f"have the recorded sha256 {sha256}", got, fix)
    shapes = _shapes(_config(cascade, name))
    content = exported.content(directory, name, weights)
    others = None
    if (difference := cascade.difference_to) is not None:
        what = f"difference_to of {directory}"
        place, other = _cascade(difference.cascade, what)
        _check_network(other, name, shapes, what)
        others = read(place, other, name, difference.weights[name])
    return weight_file.decode(content, shapes, str(directory / exported.file_name(name)), others)


def difference(cascade: str, configs: Sequence[StageConfig], option: str) -> tuple[Difference, dict[str, Any]]:
    """Return what to record of a cascade that others are the difference to, and its parameters by stage.

    Args:
      cascade: its name, as users of the difference find it.
      configs: of the stages that are to be stored as differences to its stages of the same names.
      option: how the user named it, for messages.

    Raises:
      ValueError: it is no name of an exported cascade, or one that is a difference itself, or has other networks.
    """
    rule = "be the name of a pretrained cascade or hf://OWNER/NAME, by which others find it"
    require(pretrained.is_name(cascade), option, rule, cascade, "give a name that imagen-jax sample --help lists")
    place, found = _cascade(cascade, option)
    for config in configs:
        _check_network(found, config.name, _shapes(config), option)
    recorded = Difference(cascade, {config.name: found.weights[config.name].sha256 for config in configs})
    return recorded, {config.name: read(place, found, config.name) for config in configs}


def _cascade(name: str, what: str) -> tuple[Path, Exported]:
    place = pretrained.resolve(name, what) if pretrained.is_name(name) else None
    found = None if place is None else exported.read(place)
    rule = "be a pretrained cascade that is installed, or on the hub"
    require(found is not None, what, rule, Verbatim(name), f"install it, or list its place in {pretrained.VARIABLE}")
    require(found.difference_to is None, what, "be a cascade that is no difference itself", Verbatim(name))
    return place, found


def _check_network(cascade: Exported, name: str, shapes: Any, what: str) -> None:
    names = [config.name for config in cascade.configs]
    require(name in names, what, f"have a stage {name}", Verbatim(", ".join(names)))
    is_same = _shapes(_config(cascade, name)) == shapes
    require(is_same, what, f"have the network of stage {name}", Verbatim("another network"))


def _config(cascade: Exported, name: str) -> StageConfig:
    return next(config for config in cascade.configs if config.name == name)


def _shapes(config: StageConfig) -> Any:
    return jax.eval_shape(lambda: stage.init(config, jax.random.key(0)))
