"""Exported cascades: the layout in which a trained cascade is shared, which `saving.save_pretrained` writes.

    config.json          the stages' configurations, size and SHA-256 of each weight file, provenance, the model card
    STAGE.safetensors    averaged parameters of a stage; see `weight_file`
    README.md            the model card; see `model_card`
    NOTICE, LICENSE      of the data, where given
"""

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

from imagen_jax import checks
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import StageConfig, from_dict, read_json, to_dict
from imagen_jax.config.validation import validate, validate_cascade
from imagen_jax.stage_dir import weight_file
from imagen_jax.stage_dir.directory import CONFIG_FILE
from imagen_jax.stage_dir.model_card import Card
from imagen_jax.storage import files, locations

CARD_FILE = "README.md"
FORMAT = "imagen_jax cascade"
VERSION = 2
_KEYS = ("format", "version", "dtype", "stages", "weights", "versions", "card")
_KEYS_OF_DIFFERENCES = (*_KEYS, "difference_to")  # since version 2
_DAMAGED = "the file is damaged or another one: get it, or export the cascade, again"


@dataclasses.dataclass(frozen=True)
class Weights:
    """A weight file as config.json describes it: SHA-256 in hex digits, bytes, and the step of training if known."""

    sha256: str
    size: int
    step: int | None = None


@dataclasses.dataclass(frozen=True)
class Difference:
    """The cascade that weight files hold the difference to: its name, and the SHA-256 of its stages' files by name."""

    cascade: str
    weights: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Exported:
    """An exported cascade.

    Attributes:
      configs: of its stages, base first.
      weights: by the name of the stage.
      dtype: of the weight files.
      versions: by the name of a package, the version that exported it.
      card: by its authors.
      difference_to: the cascade that weight files of int4 hold the difference to.
    """

    configs: tuple[StageConfig, ...]
    weights: dict[str, Weights]
    dtype: str
    versions: dict[str, str]
    card: Card
    difference_to: Difference | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the content of config.json."""
        more = {} if self.difference_to is None else {"difference_to": dataclasses.asdict(self.difference_to)}
        return {
            "format": FORMAT,
            "version": VERSION if more else 1,
            "dtype": self.dtype,
            "stages": [to_dict(config) for config in self.configs],
            "weights": {name: dataclasses.asdict(weights) for name, weights in self.weights.items()},
            "versions": self.versions,
            "card": dataclasses.asdict(self.card),
        } | more


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


def read_texts(directory: Path) -> dict[str, str]:
    """Return the texts of an exported cascade by the names "notice" and "licence", those that it has."""
    places = {"notice": directory / "NOTICE", "licence": directory / "LICENSE"}
    return {name: files.read_text(place) for name, place in places.items() if files.exists(place)}


def verify(directory: Path, cascade: Exported) -> None:
    """Check the size and hash of each weight file of an exported cascade.

    Raises:
      ValueError: one is missing or damaged.
    """
    for name, weights in cascade.weights.items():
        content(directory, name, weights)


def content(directory: Path, name: str, weights: Weights) -> bytes:
    """Return the bytes of the weight file of a stage after checking their number and hash.

    Raises:
      ValueError: the file is missing or damaged.
    """
    file = directory / file_name(name)
    fix = "get it, or export the cascade, again"
    require(files.exists(file), str(file), "be there", Verbatim("no such file"), fix)
    if not locations.is_remote(file):
        got = Verbatim("a link to nothing, or what is no file")
        require(file.is_file(), str(file), "be a regular file", got, fix)  # reading a pipe may block for ever
        size = file.stat().st_size
        require(size == weights.size, str(file), f"have {weights.size} bytes", size, _DAMAGED)
    with files.one_line_errors(file, "read"):
        read = file.read_bytes()
    found = hashlib.sha256(read).hexdigest()
    require(found == weights.sha256, str(file), f"have sha256 {weights.sha256}", Verbatim(found), _DAMAGED)
    return read


def _parsed(data: dict[str, Any]) -> Exported:
    version = checks.whole("version", data.get("version"))
    require(version <= VERSION, "version", f"be at most {VERSION}", version, "update imagen_jax")
    keys = _KEYS if version == 1 else _KEYS_OF_DIFFERENCES
    require(set(data) == set(keys), "the file", f"have the keys {', '.join(keys)}", sorted(data))
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
    difference_to = _difference(data["difference_to"], names) if version > 1 else None
    rule = f"be int4 with difference_to alone, which is {'not ' * (difference_to is None)}there"
    require((data["dtype"] == "int4") == (difference_to is not None), "dtype", rule, data["dtype"])
    return Exported(configs, read_weights, data["dtype"], versions, Card.of(data["card"], "card"), difference_to)


def _difference(values: Any, names: list[str]) -> Difference:
    keys = [field.name for field in dataclasses.fields(Difference)]
    is_right = isinstance(values, dict) and set(values) == set(keys) and isinstance(values["weights"], dict)
    require(is_right, "difference_to", f"have the keys {', '.join(keys)}", values)
    checks.text("difference_to.cascade", values["cascade"])
    is_right = list(values["weights"]) == names and all(
        isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) for value in values["weights"].values()
    )
    rule = f"be a JSON object of the SHA-256 of {', '.join(names)}"
    require(is_right, "difference_to.weights", rule, values["weights"])
    return Difference(**values)


def _weights(name: str, values: Any) -> Weights:
    keys = [field.name for field in dataclasses.fields(Weights)]
    is_right = isinstance(values, dict) and set(values) == set(keys)
    require(is_right, f"weights.{name}", f"have the keys {', '.join(keys)}", values)
    checks.text(f"weights.{name}.sha256", values["sha256"])
    checks.whole(f"weights.{name}.size", values["size"], high=2**50)
    if values["step"] is not None:
        checks.whole(f"weights.{name}.step", values["step"])
    return Weights(**values)
