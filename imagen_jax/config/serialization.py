"""Configurations as JSON, and the differences between two of them."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from imagen_jax.checks import plain, require, shown
from imagen_jax.config.sampling import USED_BY, SamplingConfig
from imagen_jax.config.stage import (
    DataConfig,
    ProcessConfig,
    RunConfig,
    StageConfig,
    TextConfig,
)
from imagen_jax.models.network import NETWORKS, NetworkConfig
from imagen_jax.storage import files, locations

_FORMER_NAMES = {"cond_image_channels": "control_channels"}
MAX_JSON = 16 * 2**20  # bytes of a configuration file; real ones have a few thousand


def to_dict(config: Any) -> dict[str, Any]:
    """Return a StageConfig, or a part of one, as a dict for JSON, in which the network has its name as "kind"."""
    out = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            kind = {"kind": NETWORKS.name_of(value)} if isinstance(value, NetworkConfig) else {}
            value = kind | to_dict(value)
        elif isinstance(value, tuple):
            value = [plain(entry) for entry in value]
        out[field.name] = plain(value)
    return out


def _upgraded(data: dict[str, Any], cls: type) -> dict[str, Any]:
    """Return the dict of an earlier version with current names, and the values of that version for what it lacks."""
    former = {old: new for old, new in _FORMER_NAMES.items() if new not in data}
    data = {former.get(name, name): value for name, value in data.items()}
    if cls is SamplingConfig and "spacing" not in data:
        unused = [n for n, (field, values) in USED_BY.items() if data.get(field) not in values]
        return to_dict(SamplingConfig()) | {name: value for name, value in data.items() if name not in unused}
    added = {
        TextConfig: {"dtype": "float32", "output": "last", "clean_captions": False},
        ProcessConfig: {"zero_terminal_snr": False},
        StageConfig: {"control_channels": 0, "crop_size": None},
        DataConfig: {"split": "train", "image_key": "image", "caption_key": "caption", "crop": "center"},
        RunConfig: {
            "remat": "none",
            "scan_blocks": False,
            "height": 1,
            "max_skipped": 0,
            "data_threads": 2,
            "data_workers": 0,
            "stall_timeout": 1800,
            "validate_every": 0,
            "validation_split": "validation",
            "validation_images": 256,
            "sample_every": 0,
            "sample_images": 8,
            "prompts": (),
            "wandb": "",
        },
    }
    return added.get(cls, {}) | data


def from_dict(data: dict[str, Any], cls: type = StageConfig, name: str = "") -> Any:
    """Return the configuration of a dict from `to_dict`, of this or an earlier version. Values are not checked.

    Args:
      data: as from a JSON file.
      cls: StageConfig or the dataclass of one of its parts.
      name: of `data` in messages; the class's name if empty.

    Raises:
      ValueError: `data` is no JSON object, or has other keys than the fields of `cls`.
    """
    name = name or cls.__name__
    require(isinstance(data, dict), name, "be a JSON object", data)
    data = _upgraded(data, cls)
    hints = typing.get_type_hints(cls)
    unknown, missing = sorted(set(data) - set(hints)), sorted(set(hints) - set(data))
    if unknown or missing:
        raise ValueError(
            f"{name} must hold exactly the keys of a {cls.__name__}; unknown: {unknown}, missing: {missing}: the file "
            "was written by another version of imagen_jax or edited."
        )
    return cls(**{key: _value(value, hints[key], key) for key, value in data.items()})


def _value(value: Any, hint: Any, name: str) -> Any:
    if hint is NetworkConfig:
        kind = value.get("kind") if isinstance(value, dict) else None
        is_known = isinstance(kind, str) and kind in NETWORKS
        fix = "import the code that registers it" if isinstance(kind, str) else ""
        require(is_known, f"{name}.kind", f"be one of {', '.join(NETWORKS)}", kind, fix)
        return from_dict({key: own for key, own in value.items() if key != "kind"}, NETWORKS[kind], name)
    if dataclasses.is_dataclass(hint):
        return from_dict(value, hint, name)
    return tuple(value) if isinstance(value, list) and typing.get_origin(hint) is tuple else value


def read_json(file: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
      FileNotFoundError: there is none, in a bucket.
      ValueError: it is no file, is too large, or does not hold JSON; names the file.
    """
    if locations.is_remote(file):
        content = files.read_text(file)
    else:
        content = _bounded(file)
    try:
        return json.loads(content, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:  # of the decoding, of JSON, of numbers and of nesting
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} must hold JSON, but cannot be read: {reason}.") from error


def _bounded(file: Path) -> bytes:
    require(file.is_file(), str(file), "be a file", "something else" if file.exists() else "nothing")
    size = file.stat().st_size
    require(size <= MAX_JSON, str(file), f"have at most {MAX_JSON} bytes", size)
    return file.read_bytes()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = sorted({key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])})
        raise ValueError(f"keys must be distinct; got {shown(twice)} more than once")
    return data


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values of `to_dict` by the path of their field, such as "optim.batch_size"."""
    out = {}
    for name, value in (config if isinstance(config, dict) else to_dict(config)).items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def differences(a: Any, b: Any) -> list[str]:
    """Return a line `field: a -> b` for every field in which two configurations differ."""
    left, right = flat(a), flat(b)
    names = sorted(left.keys() | right.keys())
    return [f"{n}: {left.get(n)} -> {right.get(n)}" for n in names if left.get(n) != right.get(n)]
