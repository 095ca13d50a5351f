"""Exported cascades: the layout in which a trained cascade is shared, which `saving.save_pretrained` writes.

    config.json          the stages' configurations, size and SHA-256 of each weight file, provenance, the model card
    STAGE.safetensors    averaged parameters of a stage; see `weight_file`
    README.md            the model card; see `model_card`
    NOTICE, LICENSE      of the data, where given
"""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax

from imagen_jax import checks, stage
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import StageConfig, from_dict, read_json, to_dict
from imagen_jax.config.validation import validate, validate_cascade
from imagen_jax.stage_dir import weight_file
from imagen_jax.stage_dir.directory import CONFIG_FILE
from imagen_jax.stage_dir.model_card import Card
from imagen_jax.storage import files, locations

CARD_FILE = "README.md"
FORMAT = "imagen_jax cascade"
VERSION = 1
_KEYS = ("format", "version", "dtype", "stages", "weights", "versions", "card")
_DAMAGED = "the file is damaged or another one: get it, or export the cascade, again"


@dataclasses.dataclass(frozen=True)
class Weights:
    """A weight file as config.json describes it: SHA-256 in hex digits, bytes, and the step of training if known."""

    sha256: str
    size: int
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported cascade.

    Attributes:
      configs: of its stages, base first.
      weights: by the name of the stage.
      dtype: of the weight files.
      versions: by the name of a package, the version that exported it.
      card: by its authors.
    """

    configs: tuple[StageConfig, ...]
    weights: dict[str, Weights]
    dtype: str
    versions: dict[str, str]
    card: Card

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "dtype": self.dtype,
            "stages": [to_dict(config) for config in self.configs],
            "weights": {name: dataclasses.asdict(weights) for name, weights in self.weights.items()},
            "versions": self.versions,
            "card": dataclasses.asdict(self.card),
        }


def file_name(stage_name: str) -> str:
    """Return the name of a stage's weight file."""
    return f"{stage_name}.safetensors"


def read(directory: Path) -> Exported | None:
    """Return the exported cascade in a directory, without its parameters; None if there is none.

    Raises:
      ValueError: its config.json is damaged or of a newer version.
    """
    file = directory / CONFIG_FILE
    if not files.exists(file):
        return None
    data = read_json(file)
    if not isinstance(data, dict) or "stages" not in data:
        return None
    try:
        return _parsed(data)
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{file} must describe an exported cascade; got an error in it: {reason}.") from error


def read_params(directory: Path, cascade: Exported, name: str, sha256: str | None = None) -> Any:
    """Return the parameters of a stage of an exported cascade, a tree of float32 arrays on the host.

    Args:
      directory: of the cascade.
      cascade: as from `read`.
      name: of the stage.
      sha256: that the weight file must have; None: the one in config.json.

    Raises:
      ValueError: the file is missing, has another hash, or does not fit the configuration.
    """
    weights = cascade.weights[name]
    if sha256 is not None and sha256 != weights.sha256:
        got = Verbatim(f"{weights.sha256} in {directory}")
        fix = "give the cascade of the recorded weights"
        raise checks.error(f"weights of stage {name}", f"have the recorded sha256 {sha256}", got, fix)
    (config,) = (config for config in cascade.configs if config.name == name)
    shapes = jax.eval_shape(lambda: stage.init(config, jax.random.key(0)))
    file = directory / file_name(name)
    content = _content(file, weights)
    return weight_file.decode(content, shapes, str(file))


def verify(directory: Path, cascade: Exported) -> None:
    """Check the size and hash of each weight file of an exported cascade.

    Raises:
      ValueError: one is missing or damaged.
    """
    for name, weights in cascade.weights.items():
        _content(directory / file_name(name), weights)


def _content(file: Path, weights: Weights) -> bytes:
    """Return the bytes of a weight file after checking their number and hash."""
    require(files.exists(file), str(file), "be there", Verbatim("no such file"), "get it, or export the cascade, again")
    if not locations.is_remote(file):
        files.check_regular(file)
        size = file.stat().st_size
        require(size == weights.size, str(file), f"have {weights.size} bytes", size, _DAMAGED)
    with files.one_line_errors(file, "read"):
        content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    require(found == weights.sha256, str(file), f"have sha256 {weights.sha256}", Verbatim(found), _DAMAGED)
    return content


def _parsed(data: dict[str, Any]) -> Exported:
    version = checks.whole("version", data.get("version"))
    require(version <= VERSION, "version", f"be at most {VERSION}", version, "update imagen_jax")
    require(set(data) == set(_KEYS), "the file", f"have the keys {', '.join(_KEYS)}", sorted(data))
    require(data["format"] == FORMAT, "format", f"be {FORMAT}", data["format"])
    stages, weights = data["stages"], data["weights"]
    require(isinstance(stages, list) and len(stages) > 0, "stages", "be a list of configurations", stages)
    configs = validate_cascade(tuple(validate(from_dict(each)) for each in stages))
    names = [config.name for config in configs]
    is_right = isinstance(weights, dict) and list(weights) == names
    require(is_right, "weights", f"be a JSON object of the stages {', '.join(names)}", weights)
    checks.choice("dtype", data["dtype"], weight_file.DTYPES)
    versions = data["versions"]
    is_right = isinstance(versions, dict) and all(isinstance(value, str) for value in versions.values())
    require(is_right, "versions", "be a JSON object of versions by package", versions)
    read_weights = {name: _weights(name, values) for name, values in weights.items()}
    return Exported(configs, read_weights, data["dtype"], versions, Card.of(data["card"], "card"))


def _weights(name: str, values: Any) -> Weights:
    keys = [field.name for field in dataclasses.fields(Weights)]
    is_right = isinstance(values, dict) and set(values) == set(keys)
    require(is_right, f"weights.{name}", f"have the keys {', '.join(keys)}", values)
    checks.text(f"weights.{name}.sha256", values["sha256"])
    checks.whole(f"weights.{name}.size", values["size"], high=2**50)
    if values["step"] is not None:
        checks.whole(f"weights.{name}.step", values["step"])
    return Weights(**values)
