"""Weights of DeepFloyd IF's U-Nets in diffusers' layout: where each parameter lies in them, reading and writing."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.traverse_util
import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from imagen_jax import sharding
from imagen_jax.checks import Verbatim, error, require
from imagen_jax.storage import files
from imagen_jax.text import model_files

STEM = "diffusion_pytorch_model"
DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_FLOATS = ("F16", "BF16", "F32", "F64")

# Modules of the network and the names of their tensors; of two, the parameter is both, one after the other.
_TOP = {
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    "conditioning/step/hidden": "time_embedding.linear_1",
    "conditioning/step/out": "time_embedding.linear_2",
    "conditioning/aug_step/hidden": "class_embedding.linear_1",
    "conditioning/aug_step/out": "class_embedding.linear_2",
    "conditioning/text": "encoder_hid_proj",
    "conditioning/text_pool": "add_embedding.pool",
    "conditioning/text_pool/norm": "add_embedding.norm1",
    "conditioning/text_pool/query": "add_embedding.pool.q_proj",
    "conditioning/text_pool/key": "add_embedding.pool.k_proj",
    "conditioning/text_pool/value": "add_embedding.pool.v_proj",
    "conditioning/text_pool/out": "add_embedding.proj",
    "conditioning/text_pool_norm": "add_embedding.norm2",
}
_OF_BLOCK = {
    "norm_1": "norm1",
    "conv_1": "conv1",
    "norm_2": "norm2",
    "norm_2/film": "time_emb_proj",
    "conv_2": "conv2",
    "shortcut": "conv_shortcut",
}
_OF_ATTENTION = {
    "norm": ("group_norm",),
    "text_norm": ("norm_cross",),
    "query": ("to_q",),
    "key_value": ("to_k", "to_v"),
    "text_key_value": ("add_k_proj", "add_v_proj"),
    "out": ("to_out.0",),
}
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "position": "positional_embedding"}
_BLOCK = re.compile(r"(down|up)_(\d+)_(?:block_(\d+)|(?:down|up)sample)|middle_(\d)")


class Row(NamedTuple):
    """One parameter and the tensors that it is made of, joined along their first axis.

    Attributes:
      path: of the parameter.
      names: of the tensors.
      shape: of each tensor.
    """

    path: tuple[str, ...]
    names: tuple[str, ...]
    shape: tuple[int, ...]

    def to_parameter(self, tensors: list[np.ndarray]) -> np.ndarray:
        """Return the parameter: convolutions are HWIO here and OIHW in the files, other matrices are transposed."""
        joined = np.concatenate(tensors) if len(tensors) > 1 else tensors[0]
        if self.path[-1] != "kernel":
            return joined
        if self.path[-2] == "shortcut":  # a 1x1 convolution in the files
            joined = joined[:, :, 0, 0]
        return joined.transpose(2, 3, 1, 0) if joined.ndim == 4 else joined.T

    def to_tensors(self, parameter: np.ndarray) -> list[np.ndarray]:
        """Return the tensors of a parameter: the inverse of `to_parameter`."""
        if self.path[-1] == "kernel":
            parameter = parameter.transpose(3, 2, 0, 1) if parameter.ndim == 4 else parameter.T
        return [part.reshape(self.shape) for part in np.split(parameter, len(self.names))]


def table(shapes: Any) -> list[Row]:
    """Return where each parameter of an `IFUNet` lies in the files.

    Args:
      shapes: the tree of parameters, as arrays or shapes.
    """
    flat = flax.traverse_util.flatten_dict(shapes)
    last = max(int(found[2]) for path in flat if (found := _BLOCK.fullmatch(path[0])) and found[2])
    return [_row(path, tuple(leaf.shape), last) for path, leaf in flat.items()]


def _row(path: tuple[str, ...], shape: tuple[int, ...], last_level: int) -> Row:
    *module, leaf = path
    block = _BLOCK.fullmatch(module[0])
    if block is None:
        modules = (_TOP["/".join(module)],)
    else:
        way, level, number, middle = block.groups()
        base = f"{way}_blocks.{level if way == 'down' else last_level - int(level)}" if way else "mid_block"
        number, inner = number or middle, "/".join(module[1:])
        if inner.startswith("attention/"):
            of = _OF_ATTENTION[inner.removeprefix("attention/")]
            modules = tuple(f"{base}.attentions.{number}.{name}" for name in of)
        else:
            place = f"resnets.{number}" if number is not None else f"{way}samplers.0"
            modules = (f"{base}.{place}.{_OF_BLOCK[inner]}",)
    if leaf == "kernel":
        shape = (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1]
        shape = (*shape, 1, 1) if module[-1] == "shortcut" else shape
    names = tuple(f"{name}.{_LEAVES[leaf]}" for name in modules)
    return Row(path, names, (shape[0] // len(names), *shape[1:]))


# --- reading ------------------------------------------------------------------------------------


def find_files(directory: Path, variant: str | None = None) -> list[Path]:
    """Return the safetensors files of a U-Net in diffusers' layout.

    Args:
      directory: of the U-Net.
      variant: such as "fp16"; None: the files without one, or the only variant there is.

    Raises:
      ValueError: there are none, only pickles, or several variants to choose from.
    """
    names = [path.name for path in sorted(directory.glob(f"{STEM}*"))]
    pattern = rf"{STEM}(?:\.([\w-]+?))?(?:-\d+-of-\d+)?\.safetensors|{STEM}\.safetensors\.index(?:\.([\w-]+))?\.json"
    found = [match for name in names if (match := re.fullmatch(pattern, name))]
    variants = sorted({match[1] or match[2] or "" for match in found})
    if not variants:
        fix = "download the .safetensors files"
        if pickles := [name for name in names if re.fullmatch(rf"{STEM}.*\.bin", name)]:
            is_plain = any(re.fullmatch(rf"{STEM}(-\d+-of-\d+)?\.bin", name) for name in pickles)
            if is_plain or len(pickles) == 1:  # convert reads files of no variant
                renamed = "" if is_plain else f"rename {pickles[0]} to {STEM}.bin and "
                fix += f", or {renamed}run `imagen-jax convert --model {directory}`, which runs no code of a pickle"
            raise error("weights", "be safetensors", Verbatim(f"only .bin in {directory}"), fix)
        raise error(str(directory), f"hold {STEM}.safetensors", Verbatim("none"), fix)
    if variant is None:
        named = ", ".join(variants)
        is_clear = variants[0] == "" or len(variants) == 1
        fix = "choose one in deepfloyd.load_stage, or move the files of the others away"
        require(is_clear, "variant", f"be one of {named}, which are in {directory}", None, fix)
        variant = variants[0]
    rule = f"be one of {', '.join(name or 'none' for name in variants)}, which are in {directory}"
    require(variant in variants, "variant", rule, variant, "leave it out, or download that one")
    dotted = f".{variant}" if variant else ""
    single, index = directory / f"{STEM}{dotted}.safetensors", directory / f"{STEM}.safetensors.index{dotted}.json"
    if single.is_file():
        return [single]
    fix = "download it too"
    require(index.is_file(), str(directory), f"hold {index.name}, which names the shards", Verbatim("none"), fix)
    return model_files.shards(index)


def read_params(paths: list[Path], shapes: Any, dtype: Any, mesh: Mesh | None = None) -> Any:
    """Return the parameters in safetensors files, read tensor by tensor.

    Host memory never holds more than the tensors of one parameter.

    Args:
      paths: of the files.
      shapes: the tree of parameters, as shapes.
      dtype: of the parameters.
      mesh: they are born sharded over its "fsdp" axis; None: on the default device.

    Raises:
      ValueError: a tensor is missing, left over, there twice, of another shape or type, or not finite; names it.
    """
    rows, where = table(shapes), paths[0].parent
    stored: dict[str, model_files.Stored] = {}
    for tensor in model_files.stored_tensors(paths):
        got = Verbatim(f"it in {tensor.file.name} too")
        require(tensor.name not in stored, f"{where}: the tensor {tensor.name}", "be there once", got)
        stored[tensor.name] = tensor
    _check_names(where, stored, {name for row in rows for name in row.names})
    for row in rows:
        for name in row.names:
            tensor = stored[name]
            prefix, fix = f"{tensor.file}: the tensor {name}", "get weights and config.json of the same model"
            rule = f"have shape {row.shape} as config.json says"
            require(tensor.shape == row.shape, prefix, rule, Verbatim(tensor.shape), fix)
            require(tensor.dtype in _FLOATS, prefix, f"be {', '.join(_FLOATS)}", Verbatim(tensor.dtype))
    return flax.traverse_util.unflatten_dict({row.path: _read(row, stored, dtype, mesh) for row in rows})


def _read(row: Row, stored: Mapping[str, model_files.Stored], dtype: Any, mesh: Mesh | None) -> Any:
    tensors = [model_files.read_tensor(stored[name].file, name) for name in row.names]
    with np.errstate(over="ignore"):  # reported below
        value = np.ascontiguousarray(row.to_parameter(tensors).astype(dtype))
    prefix = f"{stored[row.names[0]].file}: the tensor {row.names[0]}"
    fix = "the file is damaged, or of a training that failed"
    require(bool(np.isfinite(value).all()), prefix, "be finite", Verbatim("NaN or infinity"), fix)
    return sharding.shard_array(value, mesh)


def _check_names(where: Path, stored: Mapping[str, Any], wanted: set[str]) -> None:
    missing, unknown = sorted(wanted - set(stored)), sorted(set(stored) - wanted)
    parts = [f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
             for names, what in ((missing, "missing"), (unknown, "left over")) if names]  # fmt: skip
    rule, fix = "hold the tensors that config.json asks for, and no others", "get both of the same model"
    require(not parts, f"{where}: the weights", rule, Verbatim(" and ".join(parts)), fix)


# --- writing ------------------------------------------------------------------------------------


def num_bytes(params: Any, dtype: str) -> int:
    """Return the bytes of the tensors that `write_params` writes."""
    return sum(leaf.size for leaf in flax.traverse_util.flatten_dict(params).values()) * _numpy_dtype(dtype).itemsize


def write_params(params: Any, path: Path, dtype: str) -> None:
    """Write a safetensors file in diffusers' layout, parameter by parameter.

    Args:
      params: of an `IFUNet`, arrays that this process can read whole.
      path: of the file.
      dtype: of its tensors, one of DTYPES.

    Raises:
      ValueError: a parameter is not finite in this type.
      OSError: the file could not be written.
    """
    flat, rows, own = flax.traverse_util.flatten_dict(params), table(params), _numpy_dtype(dtype)
    size = {row: int(np.prod(row.shape)) * own.itemsize for row in rows}
    header = {name: (DTYPES[dtype], row.shape, size[row]) for row in rows for name in row.names}
    with files.replacing(path) as file:
        file.write(model_files.header(header))
        for tensor in _tensors(flat, rows, own):
            file.write(tensor)


def _tensors(flat: Mapping[tuple[str, ...], Any], rows: list[Row], dtype: np.dtype) -> Iterator[bytes]:
    for row in rows:
        with np.errstate(over="ignore"):
            value = np.asarray(flat[row.path]).astype(dtype)
        name, got = f"params {'/'.join(row.path)}", Verbatim("NaN or infinity")
        fix = "take another dtype" if dtype == np.float16 else "load an earlier checkpoint"
        require(bool(np.isfinite(value).all()), name, f"be finite as {dtype.name}", got, fix)
        yield from (np.ascontiguousarray(tensor).tobytes() for tensor in row.to_tensors(value))


def _numpy_dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
