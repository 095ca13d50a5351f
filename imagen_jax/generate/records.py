"""The record in a picture's PNG: all that the picture was made from, so that it can be made again.

It is four text chunks: `prompt`, `seed`, `sampling` (JSON: the sampling options of every stage that ran) and
`imagen_jax` (JSON: the other fields of `Record`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax import checks
from imagen_jax.config import SamplingConfig, TextConfig, from_dict, to_dict
from imagen_jax.config.sampling import kinds
from imagen_jax.data import transforms
from imagen_jax.generate import png_text

FORMAT = 1
MAX_BATCH = 2**16  # rows
TEXT_DTYPES = typing.get_args(typing.get_type_hints(TextConfig)["dtype"])
INPUTS = ("image", "mask", "low_res")  # the files that a picture may be made from
_CHUNK = "imagen_jax"
# Not in the pictures of before there were any; what they mean there.
_LATER: dict[str, Any] = {"adapters": [], "text_encoder": None, "text_dtype": None}
_OWN_CHUNKS = ("prompt", "seed", "sampling")
_FIX = "name a PNG that imagen-jax sample wrote"


@dataclasses.dataclass(frozen=True)
class InputFile:
    """A file that a picture was made from: its absolute path, and the SHA-256 of its bytes in hex digits."""

    path: str
    sha256: str

    @classmethod
    def of(cls, name: str, path: Path) -> InputFile:
        """Return the record of a file as it is now, given as the input `name`; raises as `transforms.read_file`."""
        data = transforms.read_file(option(name), path)
        return cls(str(path.absolute()), hashlib.sha256(data).hexdigest())


@dataclasses.dataclass(frozen=True)
class AdapterFile:
    """An adapter that was applied: its absolute path or URL, the SHA-256 of its files in hex digits, and its weight."""

    path: str
    sha256: str
    weight: float


def option(name: str) -> str:
    """Return the option that names the input `name`, such as "--low-res"."""
    return f"--{name.replace('_', '-')}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """What a picture was made from.

    Attributes:
      prompt: the caption.
      seed: of the picture, from 0 to 2^32 - 1.
      sampling: all sampling options of each stage that ran, by its name, in the order of the stages.
      negative: the prompt that the picture was steered away from, or None.
      size: (height, width) of the result in pixels.
      outpaint: shares in percent that were painted around the image: top, bottom, left, right; or None.
      image, mask, low_res: the files that were given, or None.
      workdir: absolute path or URL of the cascade, or the name of a pretrained one; or one of each directory of stages.
      checkpoints: step of the checkpoint of each stage that ran, by its name; of a stage in weight files their SHA-256
        in hex digits.
      adapters: in the order in which they were applied.
      encoder: fingerprint of the text encoder.
      text_encoder: its absolute path, or its name, if another than the cascade's own.
      text_dtype: type of its weights, if another than that of training.
      batch_size: rows of the batch that the picture was computed in.
      row: of the picture in that batch.
      fsdp: devices that shared each copy of the parameters.
      devices: number and kind of the devices, such as "8 x cpu".
      versions: of packages, by their names.
    """

    prompt: str
    seed: int
    sampling: dict[str, SamplingConfig]
    negative: str | None = None
    size: tuple[int, int]
    outpaint: tuple[int, int, int, int] | None = None
    image: InputFile | None = None
    mask: InputFile | None = None
    low_res: InputFile | None = None
    workdir: str | tuple[str, ...]
    checkpoints: dict[str, int | str]
    adapters: tuple[AdapterFile, ...] = ()
    encoder: str
    text_encoder: str | None = None
    text_dtype: str | None = None
    batch_size: int
    row: int
    fsdp: int = 1
    devices: str
    versions: dict[str, str]


def encode_png(x: np.ndarray, record: Record) -> bytes:
    """Return a PNG of the pixels x, uint8 [H, W, 3], with the record in it."""
    rest = dataclasses.asdict(record)
    chunks = {"prompt": rest.pop("prompt"), "seed": str(rest.pop("seed"))}
    del rest["sampling"]
    rest = {name: value for name, value in rest.items() if name not in _LATER or value}
    chunks["sampling"] = json.dumps({name: to_dict(used) for name, used in record.sampling.items()})
    chunks[_CHUNK] = json.dumps({"format": FORMAT} | rest)
    return png_text.encode(x, chunks)


def read(path: Path) -> tuple[Record, np.ndarray]:
    """Return the record and the pixels, uint8 [H, W, 3], of a PNG that `encode_png` made.

    Args:
      path: of the PNG that --from-png names.

    Raises:
      ValueError: one line; it is no such PNG, is damaged, or is of another version.
    """
    where = f"--from-png {path}"
    pixels, texts = png_text.read(path, _FIX)
    others = ", ".join(sorted(texts)[:8]) or "none"
    is_early = _CHUNK not in texts and set(_OWN_CHUNKS) <= set(texts) and texts["seed"].isdecimal()
    if is_early:
        raise ValueError(
            f"{where} must hold a whole record; got one of an earlier version, with prompt, seed and sampling, but "
            "without negative, size, image, mask, low_res, outpaint, workdir, checkpoints, encoder, batch_size, "
            "devices, versions: give these as options, with the prompt and seed that are recorded."
        )
    if _CHUNK not in texts:
        raise ValueError(
            f"{where} must hold the record of a picture; got text chunks of other programs or none ({others}): {_FIX}."
        )
    try:
        record = _record(texts)
    except ValueError as error:
        raise checks.within(f"{where} has a damaged record", error) from error
    if pixels.shape[:2] != record.size:
        height, width = pixels.shape[:2]
        raise ValueError(
            f"{where} must have the size that it records, {record.size[1]}x{record.size[0]} pixels; got "
            f"{width}x{height}: name the picture as it was written."
        )
    return record, pixels


def compare(record: Record, before: np.ndarray, again: Record, after: np.ndarray) -> str:
    """Return in words how a picture that was made again differs from the recorded one, and what may be the reason.

    Args:
      record, before: of the recorded picture, uint8 [H, W, 3].
      again, after: of the picture made from its record.
    """
    difference = np.abs(after.astype(int) - before)
    if not difference.any():
        return "equal to the recorded picture to the bit"
    values = {
        key: (getattr(record, key), getattr(again, key)) for key in ("versions", "devices", "batch_size")
    }
    changed = [f"{key} were {old}, are {new}" for key, (old, new) in values.items() if old != new]
    reasons = (
        "; ".join(changed)
        or "none of versions, devices and batch_size has changed, but perhaps the checkpoint"
    )
    return (
        f"differs from the recorded picture in {np.count_nonzero(difference)} of {difference.size} values, by up to "
        f"{difference.max()} of 255 ({reasons})"
    )


def _record(texts: Mapping[str, str]) -> Record:
    """Return the record that text chunks hold; raise ValueError for anything that `encode_png` does not write."""
    missing = [name for name in _OWN_CHUNKS if name not in texts]
    checks.require(not missing, "text chunks", "hold prompt, seed and sampling", f"none called {missing}")
    data = _LATER | _json(texts, _CHUNK)
    version = data.pop("format", None)
    checks.require(checks.is_whole(version), "format", "be a whole number", version)
    checks.require(
        version == FORMAT, "format", f"be {FORMAT}", version, "use the version of imagen_jax that wrote it"
    )
    names = {field.name for field in dataclasses.fields(Record)} - set(_OWN_CHUNKS)
    wrong = sorted(names ^ set(data))
    checks.require(not wrong, _CHUNK, f"hold {', '.join(sorted(names))}", f"too much or too little: {wrong}")
    seed = texts["seed"]
    checks.require(seed.isdecimal() and len(seed) < 20, "seed", "be a whole number", seed)
    sampling = {name: _sampling(name, options) for name, options in _json(texts, "sampling").items()}
    for name in ("prompt", "negative"):
        value = data.get(name, texts.get(name))
        if value is not None:
            checks.text(name, value, may_be_empty=True)
    for name in ("encoder", "devices"):
        checks.instance(name, data[name], str, "a str")
    workdir = tuple(data["workdir"]) if isinstance(data["workdir"], list) else data["workdir"]
    for place in workdir if isinstance(workdir, tuple) else [workdir]:
        checks.instance("workdir", place, str, "a str, or a list of them")
    batch_size = checks.whole("batch_size", data["batch_size"], 1, MAX_BATCH)
    return Record(
        prompt=texts["prompt"],
        seed=checks.seed(int(seed)),
        sampling=sampling,
        negative=data["negative"],
        size=_whole_numbers("size", data["size"], 2, low=1),
        outpaint=None if data["outpaint"] is None else _whole_numbers("outpaint", data["outpaint"], 4),
        workdir=workdir,
        checkpoints={name: _checkpoint(name, which) for name, which in _by_stage(data, sampling)},
        adapters=_adapters(data["adapters"]),
        encoder=data["encoder"],
        text_encoder=None if data["text_encoder"] is None else checks.text("text_encoder", data["text_encoder"]),
        text_dtype=None if data["text_dtype"] is None else checks.choice("text_dtype", data["text_dtype"], TEXT_DTYPES),
        batch_size=batch_size,
        row=checks.whole("row", data["row"], 0, batch_size - 1),
        fsdp=checks.whole("fsdp", data["fsdp"], 1),
        devices=data["devices"],
        versions=_versions(data["versions"]),
        **{name: _input_file(name, data[name]) for name in INPUTS},
    )


def _json(texts: Mapping[str, str], name: str) -> dict[str, Any]:
    try:
        data = json.loads(texts[name])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} must be JSON; {error}.") from error
    return checks.instance(name, data, dict, "a JSON object")


def _sampling(name: str, options: Any) -> SamplingConfig:
    checks.instance(f"sampling.{name}", options, dict, "a JSON object of sampling options")
    try:
        sampling = from_dict(options, SamplingConfig)
        for kind in kinds():
            sampling.check_chosen(kind)
        return sampling
    except (TypeError, KeyError, ValueError) as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"sampling.{name} must hold sampling options; got an error in them: {reason}.") from error


def _by_stage(data: dict[str, Any], sampling: dict[str, SamplingConfig]) -> list[tuple[str, Any]]:
    steps = checks.instance("checkpoints", data["checkpoints"], dict, "a JSON object of steps by stage")
    is_same = bool(sampling) and list(steps) == list(sampling)
    checks.require(is_same, "checkpoints", "have the stages of sampling", list(steps))
    return list(steps.items())


def _checkpoint(name: str, which: Any) -> int | str:
    if not isinstance(which, str):
        return checks.whole(f"checkpoints.{name}", which)
    is_hash = re.fullmatch("[0-9a-f]{64}", which) is not None
    checks.require(is_hash, f"checkpoints.{name}", "be a step or a sha256", which)
    return which


def _whole_numbers(name: str, value: Any, num: int, low: int = 0) -> tuple[int, ...]:
    is_list = isinstance(value, list) and len(value) == num
    checks.require(is_list, name, f"be {num} whole numbers", value)
    return tuple(checks.whole(name, number, low, 2**20) for number in value)


def _versions(value: Any) -> dict[str, str]:
    is_right = isinstance(value, dict) and all(isinstance(version, str) for version in value.values())
    checks.require(is_right, "versions", "be a JSON object of versions by package", value)
    return value


def _adapters(value: Any) -> tuple[AdapterFile, ...]:
    rule = "be a list of JSON objects with path, sha256 and a finite weight"
    is_right = isinstance(value, list) and all(
        isinstance(each, dict)
        and set(each) == {"path", "sha256", "weight"}
        and isinstance(each["path"], str)
        and isinstance(each["sha256"], str)
        and checks.is_finite(each["weight"])
        for each in value
    )
    checks.require(is_right, "adapters", rule, value)
    return tuple(AdapterFile(**each) for each in value)


def _input_file(name: str, value: Any) -> InputFile | None:
    if value is None:
        return None
    is_right = isinstance(value, dict) and set(value) == {"path", "sha256"}
    is_right = is_right and all(isinstance(entry, str) for entry in value.values())
    checks.require(is_right, name, "be a path and a sha256", value)
    return InputFile(**value)
