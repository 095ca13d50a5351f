"""The parameters of one stage as the bytes of a safetensors file.

A tensor has the path of its parameter as its name, such as "down_0/conv/kernel". In a file of int8 each kernel is int8,
symmetric with one scale for each output channel (its last axis), which is the float32 tensor "PATH/scale"; all other
parameters are float32. The rounding of a kernel's entry is at most half its channel's scale, 1/254 of the largest
magnitude in the channel.
"""

from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from imagen_jax.checks import Verbatim, require

DTYPES = ("bfloat16", "float32", "int8")
_STORED = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "I8": np.dtype(np.int8)}
_SCALE = "/scale"
_LEVELS = 127


def encode(params: Any, dtype: str) -> bytes:
    """Return a safetensors file.

    Args:
      params: a tree of float32 arrays that this process can read whole.
      dtype: one of DTYPES, the type that kernels are stored in; for "bfloat16" that of all parameters.

    Raises:
      ValueError: a parameter is not finite.
    """
    tensors = {}
    for name, leaf in _by_path(params).items():
        value = np.asarray(leaf)
        fix = "take a checkpoint from before training failed"
        require(bool(np.isfinite(value).all()), f"params {name}", "be finite", Verbatim("NaN or infinity"), fix)
        if dtype == "int8" and _is_kernel(name, value):
            tensors[name], tensors[name + _SCALE] = _quantized(value)
        else:
            tensors[name] = value.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else value
    return safetensors.numpy.save({name: np.asarray(value, order="C") for name, value in tensors.items()})


def decode(content: bytes, shapes: Any, file: str) -> Any:
    """Return the parameters in a safetensors file as a tree of float32 arrays on the host.

    Args:
      content: of the file.
      shapes: a tree with an array or a ShapeDtypeStruct for each parameter.
      file: its name in messages.

    Raises:
      ValueError: the file is damaged, or holds the parameters of another network.
    """
    try:
        entries = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} must be a safetensors file; got an error ({reason}): get the file again.") from error
    stored = {name: _array(entry, f"{file}: {name}") for name, entry in entries.items()}
    wanted = _by_path(shapes)
    scales = {name + _SCALE for name, value in stored.items() if value.dtype == np.int8}
    unknown, missing = sorted(set(stored) - set(wanted) - scales), sorted((set(wanted) | scales) - set(stored))
    got = Verbatim(f"{len(unknown)} unknown {unknown[:3]}, {len(missing)} missing {missing[:3]}")
    fix = "get both files again, from one place"
    rule = "hold the parameters of the network that the JSON file beside it describes"
    require(not unknown and not missing, file, rule, got, fix)

    def restored(path: Any, leaf: Any) -> np.ndarray:
        name = _name(path)
        value = stored[name]
        require(value.shape == leaf.shape, f"{file}: {name}", f"be of shape {list(leaf.shape)}", value, fix)
        if value.dtype != np.int8:
            return value.astype(np.float32)
        scale, rule = stored[name + _SCALE], f"be float32 of shape [{value.shape[-1]}]"
        is_right = scale.shape == value.shape[-1:] and scale.dtype == np.float32
        require(is_right, f"{file}: {name}{_SCALE}", rule, scale, fix)
        return value.astype(np.float32) * scale

    return jax.tree_util.tree_map_with_path(restored, shapes)


def _by_path(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_kernel(name: str, value: np.ndarray) -> bool:
    return value.ndim > 1 and name.rpartition("/")[2] == "kernel"


def _quantized(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a kernel [..., C] as int8, and the float32 scale [C] of its entries."""
    largest = np.abs(kernel).max(axis=tuple(range(kernel.ndim - 1)))
    scale = np.maximum(largest / _LEVELS, np.finfo(np.float32).tiny)
    return np.clip(np.round(kernel / scale), -_LEVELS, _LEVELS).astype(np.int8), scale


def _array(entry: dict[str, Any], name: str) -> np.ndarray:
    require(entry["dtype"] in _STORED, name, f"be {', '.join(_STORED)}", Verbatim(entry["dtype"]))
    return np.frombuffer(entry["data"], _STORED[entry["dtype"]]).reshape(entry["shape"])
