"""Configurations as JSON with a version, and the differences between two of them."""

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

from imagen_jax.checks import Verbatim, is_whole, plain, require, shown
from imagen_jax.config.sampling import CORE, SamplingConfig, flat_options, kinds
from imagen_jax.config.stage import StageConfig
from imagen_jax.models.network import NETWORKS, NetworkConfig
from imagen_jax.storage import files, locations

_MAY_BE_UNKNOWN = ("text.width", "text.model_hash")  # None until training takes them from the encoder
MAX_JSON = 16 * 2**20  # bytes of a configuration's file; real ones have a few thousand


def to_dict(config: Any) -> dict[str, Any]:
    """Return `config`, a StageConfig or a part of one, as a dict for JSON.

    That of a StageConfig begins with the version of the format, that of a network with its kind.
    """
    if isinstance(config, SamplingConfig):
        return config.flat()
    out = {"version": VERSION} if isinstance(config, StageConfig) else {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            kind = {"kind": NETWORKS.name_of(value)} if isinstance(value, NetworkConfig) else {}
            value = kind | to_dict(value)
        elif isinstance(value, tuple):
            value = [plain(entry) for entry in value]
        out[field.name] = plain(value)
    return out


def _upgrade(data: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the dict of a StageConfig of any version as one of the current version, without the number."""
    version = data.get("version", 0)
    require(is_whole(version) and version >= 0, f"{name}.version", "be a whole number", version)
    fix = "update imagen_jax, since a newer version wrote this"
    require(version <= VERSION, f"{name}.version", f"be at most {VERSION}", version, fix)
    data = {key: value for key, value in data.items() if key != "version"}
    for upgrade in _UPGRADES[version:]:
        data = upgrade(data)
    return data


def _upgrade_from_0(data: dict[str, Any]) -> dict[str, Any]:
    """Upgrade a dict without a version: a renamed field, and for what it lacks the values that were used then."""
    if "control_channels" not in data:
        kept = {key: value for key, value in data.items() if key != "cond_image_channels"}
        data = kept | {"control_channels": data.get("cond_image_channels", 0)}
    data = {"crop_size": None, "init_from": ""} | data
    for part, added in _ADDED_IN_1.items():
        if isinstance(data.get(part), dict):
            data[part] = added | data[part]
    return data


_ADDED_IN_1: dict[str, dict[str, Any]] = {
    "text": {"dtype": "float32", "output": "last", "clean_captions": False},
    "process": {"zero_terminal_snr": False},
    "optim": {"objective": "denoising"},
    "data": {"split": "train", "image_key": "image", "caption_key": "caption", "crop": "center"},
    "run": {
        "remat": "none", "scan_blocks": False, "height": 1, "max_skipped": 0, "data_threads": 2, "data_workers": 0,
        "stall_timeout": 1800, "validate_every": 0, "validation_split": "validation", "validation_images": 256,
        "sample_every": 0, "sample_images": 8, "prompts": (), "wandb": "",
    },
}  # fmt: skip


def _upgrade_from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Upgrade a dict of before there were patches in U-Nets, the v weight, and times other than uniform."""
    for part, added in _ADDED_IN_2.items():
        own = data.get(part)
        if isinstance(own, dict) and own.get("kind") in (None, "unet", "efficient_unet"):
            data = data | {part: added | own}
    return data


_ADDED_IN_2: dict[str, dict[str, Any]] = {
    "network": {"patch_size": 1, "patch_transform": "space_to_depth"},
    "process": {"v_cap": 400.0, "times": "uniform", "logit_normal_mean": 0.8, "logit_normal_std": 0.8},
}


def _upgrade_from_2(data: dict[str, Any]) -> dict[str, Any]:
    """Upgrade a dict of before there were adapters and prior preservation."""
    for part, added in _ADDED_IN_3.items():
        if isinstance(data.get(part, {}), dict):
            data = data | {part: added | data.get(part, {})}
    return data


_ADDED_IN_3: dict[str, dict[str, Any]] = {
    "lora": {"rank": 0, "scale": 1.0, "targets": "attention"},
    "data": {"prior_path": "", "prior_split": "train"},
    "optim": {"prior_weight": 1.0},
}


def _upgrade_from_3(data: dict[str, Any]) -> dict[str, Any]:
    """Upgrade a dict of before stages could be distilled."""
    data = _ADDED_IN_4 | data
    if isinstance(data.get("optim"), dict):
        data["optim"] = {"teacher": ""} | data["optim"]
    return data


_ADDED_IN_4: dict[str, Any] = {"distilled": {"steps": 0, "substeps": 2, "guidance_scale": None}}


def _upgrade_from_4(data: dict[str, Any]) -> dict[str, Any]:
    """Upgrade a dict of before the weights of the text encoder were recorded."""
    if isinstance(data.get("text"), dict):
        data = data | {"text": _ADDED_IN_5["text"] | data["text"]}
    return data


_ADDED_IN_5: dict[str, dict[str, Any]] = {"text": {"model_hash": None}}


# The function at index i makes version i + 1 of version i.
_UPGRADES = (_upgrade_from_0, _upgrade_from_1, _upgrade_from_2, _upgrade_from_3, _upgrade_from_4)
VERSION = len(_UPGRADES)


def _upgrade_sampling(data: dict[str, Any]) -> dict[str, Any]:
    """Upgrade sampling options, which carry no version: before `spacing`, unused options had values as well."""
    if "spacing" in data:
        return data
    used = {*CORE, *SamplingConfig(**{kind: data[kind] for kind in kinds() if kind in data}).used}
    return CORE | {name: value for name, value in data.items() if name in used or name not in flat_options()}


def from_dict(data: dict[str, Any], cls: type = StageConfig, name: str = "") -> Any:
    """Return the configuration of a dict from `to_dict`, of this or an earlier version. Values are not checked.

    Args:
      data: as from a JSON file.
      cls: StageConfig or the dataclass of one of its parts.
      name: of `data` in messages; the class's name if empty.

    Raises:
      ValueError: `data` is no JSON object, of a newer version, or has other keys than the fields of `cls`.
    """
    name = name or cls.__name__
    require(isinstance(data, dict), name, "be a JSON object", data)
    if cls is StageConfig:
        data = _upgrade(data, name)
    elif cls is SamplingConfig:
        data = _upgrade_sampling(data)
    hints = typing.get_type_hints(cls)
    known, needed = (flat_options(), CORE) if cls is SamplingConfig else (hints, hints)
    unknown, missing = sorted(set(data) - set(known)), sorted(set(needed) - set(data))
    if unknown or missing:
        raise ValueError(
            f"{name} must hold exactly the keys of a {cls.__name__}; got unknown: {unknown}, missing: {missing}: the "
            "file was written by another version of imagen_jax or edited, or a method of it is not registered."
        )
    return cls(**{key: _value(value, hints.get(key), key) for key, value in data.items()})


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
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(f"{file} must hold JSON; got what cannot be read: {reason}.") from error


def _bounded(file: Path) -> bytes:
    require(file.is_file(), str(file), "be a file", Verbatim("something else" if file.exists() else "nothing"))
    size = file.stat().st_size
    require(size <= MAX_JSON, str(file), f"have at most {MAX_JSON} bytes", size)
    return file.read_bytes()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = sorted({key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])})
        raise ValueError(f"keys must be distinct; got {shown(twice)} more than once.")
    return data


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return every field by its path, such as "optim.batch_size", with values as in `to_dict`."""
    out, fields = {}, config
    if not isinstance(config, dict):
        fields = {name: value for name, value in to_dict(config).items() if name != "version"}
    for name, value in fields.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def differences(a: Any, b: Any) -> list[str]:
    """Return a line "field: a -> b" for every field in which two configurations differ."""
    left, right = flat(a), flat(b)
    names = sorted(left.keys() | right.keys())
    return [f"{n}: {left.get(n)} -> {right.get(n)}" for n in names if differ(n, left.get(n), right.get(n))]


def differ(name: str, a: Any, b: Any) -> bool:
    """Whether two values of the field `name`, such as "text.width", differ: what one does not know is no difference."""
    return a != b and not (name in _MAY_BE_UNKNOWN and None in (a, b))
