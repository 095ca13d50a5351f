"""The files of a published model: JSON with limits and types, safetensors headers, hashes."""

import hashlib
import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# Several times the largest of a published model (tokenizer.json of a vocabulary of 256,000: 17 MB).
MAX_TEXT_BYTES = 64 << 20
# Of 100,000 tensors.
_MAX_HEADER_BYTES = 16 << 20
# transformers writes 1e30 for "no limit"; no encoder here was trained on texts of such a length.
NO_LIMIT = 1_000_000
PIPELINE_INDEX = "model_index.json"  # of a pipeline in diffusers' layout
OPEN_CLIP_CONFIG, OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


def first_line(error: BaseException) -> str:
    """Return another library's error message in one line of at most 300 characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def check_size(path: Path, limit: int = MAX_TEXT_BYTES) -> None:
    """Raise ValueError if a text file of a model is larger than any real one."""
    size = path.stat().st_size
    if size > limit:
        raise ValueError(f"{path} must have at most {limit} bytes; got {size}: get the file again.")


# --- JSON ---------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raise ValueError if there is none."""
    check_size(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # not JSON, not text, or nested without end
        raise ValueError(
            f"{path} must be JSON, and cannot be read ({first_line(error)}); get it again."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object; got {found!r:.80}: get it again.")
    return found


def _is_integer(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _is_token(value: Any) -> bool:
    if isinstance(value, dict):  # some files spell out how the token is matched
        value = value.get("content")
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _is_limit(value: Any) -> bool:
    return type(value) in (int, float) and value >= 1 and (value == math.inf or value == int(value))


_SWITCH = ("true or false", lambda value: isinstance(value, bool))
_TOKEN = ("a token", _is_token)
# What is read of a tokenizer's settings, here or by the libraries: key -> (what it must be, test). null is as absent.
_SETTINGS = {
    **{f"{kind}_token": _TOKEN for kind in ("pad", "eos", "bos", "unk", "cls", "sep", "mask")},
    **dict.fromkeys(("do_lower_case", "tokenize_chinese_chars", "strip_accents", "add_prefix_space"), _SWITCH),
    "tokenizer_class": ("a name", lambda value: isinstance(value, str)),
    "extra_ids": ("an integer from 0 to 2147483647", _is_integer),
    "model_max_length": ("a whole number from 1", _is_limit),
    "max_seq_length": ("a whole number from 1", _is_limit),
    "additional_special_tokens": (
        "a list of tokens",
        lambda value: isinstance(value, list) and all(map(_is_token, value)),
    ),
    "added_tokens_decoder": (
        "an object from ids to tokens",
        lambda value: isinstance(value, dict)
        and all(id.isascii() and id.isdigit() and len(id) < 10 and _is_token(token) for id, token in value.items()),
    ),
}  # fmt: skip


def read_settings(path: Path) -> dict[str, Any]:
    """Return a tokenizer's settings without those that are null; {} if there is no such file.

    Raises:
      ValueError: what is read of it has another type than it must.
    """
    if not path.is_file():
        return {}
    settings = {key: value for key, value in read_json(path).items() if value is not None}
    for key, (kind, is_valid) in _SETTINGS.items():
        if key in settings and not is_valid(settings[key]):
            raise ValueError(f"{path}: {key} must be {kind}; got {settings[key]!r:.80}: get it again.")
    return settings


def read_limit(path: Path, key: str) -> int | None:
    """Return the most tokens of a caption that a file of settings states; None if it states none."""
    limit = read_settings(path).get(key)
    return None if limit is None or limit >= NO_LIMIT else int(limit)


# --- weights ------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """A tensor as a safetensors file's header states it."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def is_open_clip(directory: Path) -> bool:
    """Whether a model has open_clip's own files in place of config.json and model.safetensors."""
    return (directory / OPEN_CLIP_CONFIG).is_file() and not (directory / "config.json").is_file()


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files that make up a model's weights, in a fixed order.

    Raises:
      ValueError: there are none, or some shards are missing.
    """
    if is_open_clip(directory) and (directory / OPEN_CLIP_WEIGHTS).is_file():
        return [directory / OPEN_CLIP_WEIGHTS]
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return shards(index)
    # Variants, such as model.fp16.safetensors: the first by name, if there is no file without one.
    if variants := sorted(directory.glob("model.safetensors.index.*.json")):
        return shards(variants[0])
    if variants := [p for p in sorted(directory.glob("model.*.safetensors")) if "-of-" not in p.name]:
        return [variants[0]]
    if has_pickles(directory):
        raise ValueError(
            f"weights must be safetensors; got only pytorch_model.bin in {directory}, a pickle, which can run any "
            f"code when it is read: run `imagen-jax convert --model {directory}`, which runs none of it."
        )
    raise ValueError(
        f"a text encoder's directory must hold model.safetensors; got {directory}, which has "
        "none: get a complete copy of the model."
    )


def has_pickles(directory: Path) -> bool:
    """Whether a directory holds weights as torch pickles them."""
    return any(directory.glob("pytorch_model*.bin")) or (directory / "pytorch_model.bin.index.json").is_file()


def shards(index: Path) -> list[Path]:
    """Return the files that an index of sharded weights names.

    Raises:
      ValueError: the index names none, some that are missing, or some in other directories.
    """
    where = read_json(index).get("weight_map")
    names = list(where.values()) if isinstance(where, dict) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{index} must hold weight_map, from tensors to files; got {where!r:.80}: get it again."
        )
    names = sorted(set(names))
    for name in names:
        if Path(name).name != name or "\0" in name:
            raise ValueError(f"{index} must name files beside it; got {name!r:.80}: get it again.")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(
            f"{index} must name shards that exist; got {', '.join(missing)[:300]}, which do not: copy or download "
            "them too."
        )
    return [index.parent / name for name in names]


def stored_tensors(files: Iterable[Path]) -> Iterator[Stored]:
    """Yield the tensors that the headers of a model's weight files state, file by file.

    Raises:
      ValueError: a file is not safetensors.
    """
    from safetensors import SafetensorError, safe_open

    for file in files:
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
        if size > _MAX_HEADER_BYTES:
            raise ValueError(
                f"{file} must be a safetensors file; its header has {size} bytes, more than {_MAX_HEADER_BYTES}: get "
                "it again."
            )
        try:
            with safe_open(file, framework="numpy") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}
                found = [Stored(file, n, tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()]
        except SafetensorError as error:
            reason = first_line(error)
            raise ValueError(
                f"{file} must be a safetensors file; it cannot be read ({reason}): get it again."
            ) from error
        yield from found


def read_tensor(file: Path, name: str) -> np.ndarray:
    """Return one tensor of a safetensors file."""
    from safetensors import safe_open

    # Opened for each tensor: what has been read of an open file counts as the process's memory.
    with safe_open(file, framework="numpy") as opened:
        return opened.get_tensor(name)


def header(tensors: Mapping[str, tuple[str, tuple[int, ...], int]]) -> bytes:
    """Return the header of a safetensors file, its length and JSON, for the dtype, shape and bytes of each tensor."""
    stated, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, nbytes) in tensors.items():
        start, end = end, end + nbytes
        stated[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(stated).encode()
    encoded += b" " * (-len(encoded) % 8)
    return struct.pack("<Q", len(encoded)) + encoded


# --- hashes -------------------------------------------------------------------------------------


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def named_hash(path: Path) -> str:
    """Return `file_hash`, without reading files that the hub's cache names by their hash, as it does all large ones."""
    target = path.resolve()
    is_named = target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name)
    return target.name if is_named else file_hash(path)
