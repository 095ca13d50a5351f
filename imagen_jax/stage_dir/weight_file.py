"""The parameters of one stage as the bytes of a safetensors file.

A tensor has the path of its parameter as its name, such as "down_0/conv/kernel". In a file of int8 each kernel is int8,
symmetric with one scale for each output channel (its last axis), which is the float32 tensor "PATH/scale"; all other
parameters are float32. The rounding of a kernel's entry is at most half its channel's scale, 1/254 of the largest
magnitude in the channel.

A file of int4 holds the difference to other parameters of the same network, for a stage that was trained from them.
Each kernel is the uint8 tensor of its entries' differences in units of its channel's scale, integers from -7 to 7 in
two's complement of 4 bits, the first of two in the lower half of a byte; all other parameters are float32, not
differences. A parameter that is as in the others is not in the file.
"""

from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from imagen_jax.checks import Verbatim, require

DTYPES = ("bfloat16", "float32", "int8", "int4")
_STORED = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
}
_SCALE = "/scale"
_LEVELS = 127
_LEVELS_4 = 7


def encode(params: Any, dtype: str, others: Any = None) -> bytes:
    """Return a safetensors file.

    Args:
      params: a tree of float32 arrays that this process can read whole.
      dtype: one of DTYPES, the type that kernels are stored in; for "bfloat16" that of all parameters.
      others: for "int4", the parameters to store the difference to, a tree like `params`.

    Raises:
      ValueError: a parameter is not finite.
    """
    rule = "be given with dtype int4, and with no other"
    require((dtype == "int4") == (others is not None), "others", rule, Verbatim(f"dtype {dtype}"))
    tensors, known = {}, {} if others is None else _by_path(others)
    for name, leaf in _by_path(params).items():
        value = np.asarray(leaf)
        fix = "take a checkpoint from before training failed"
        require(bool(np.isfinite(value).all()), f"params {name}", "be finite", Verbatim("NaN or infinity"), fix)
        if dtype == "int8" and _is_kernel(name, value):
            tensors[name], tensors[name + _SCALE] = _quantized(value)
        elif known and np.array_equal(value, known[name]):
            continue
        elif dtype == "int4" and _is_kernel(name, value):
            tensors[name], tensors[name + _SCALE] = _halves_of_bytes(value - np.asarray(known[name]))
        else:
            tensors[name] = value.astype(ml_dtypes.bfloat16) if dtype == "bfloat16" else value
    return safetensors.numpy.save({name: np.asarray(value, order="C") for name, value in tensors.items()})


def decode(content: bytes, shapes: Any, file: str, others: Any = None) -> Any:
    """Return the parameters in a safetensors file as a tree of float32 arrays on the host.

    Args:
      content: of the file.
      shapes: a tree with an array or a ShapeDtypeStruct for each parameter.
      file: its name in messages.
      others: for a file of differences, the parameters that they are to.

    Raises:
      ValueError: the file is damaged, or holds the parameters of another network.
    """
    try:
        entries = dict(safetensors.deserialize(content))
    except safetensors.SafetensorError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} must be a safetensors file; got an error ({reason}): get the file again.") from error
    stored = {name: _array(entry, f"{file}: {name}") for name, entry in entries.items()}
    wanted, known = _by_path(shapes), {} if others is None else _by_path(others)
    scales = {name + _SCALE for name, value in stored.items() if value.dtype in (np.int8, np.uint8)}
    unknown = sorted(set(stored) - set(wanted) - scales)
    missing = sorted((set(wanted) - set(known) | scales) - set(stored))
    got = Verbatim(f"{len(unknown)} unknown {unknown[:3]}, {len(missing)} missing {missing[:3]}")
    fix = "get both files again, from one place"
    rule = "hold the parameters of the network that the JSON file beside it describes"
    require(not unknown and not missing, file, rule, got, fix)

    def restored(path: Any, leaf: Any) -> np.ndarray:
        name = _name(path)
        if name not in stored:
            return np.asarray(known[name])
        value = stored[name]
        is_difference = name in known and value.dtype == np.uint8
        shape = (-(-leaf.size // 2),) if is_difference else leaf.shape
        require(value.shape == shape, f"{file}: {name}", f"be of shape {list(shape)}", value, fix)
        rule = "be uint8 in a file of differences alone"
        require(is_difference or value.dtype != np.uint8, f"{file}: {name}", rule, value, fix)
        if not is_difference and value.dtype != np.int8:
            return value.astype(np.float32)
        scale, rule = stored[name + _SCALE], f"be float32 of shape [{leaf.shape[-1]}]"
        is_right = scale.shape == leaf.shape[-1:] and scale.dtype == np.float32
        require(is_right, f"{file}: {name}{_SCALE}", rule, scale, fix)
        if is_difference:
            return known[name] + _from_halves(value, leaf.shape) * scale
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


def _halves_of_bytes(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a kernel [..., C] as integers of 4 bits, two a byte, and the float32 scale [C] of its entries.

    With few levels, rounding entries costs more than clipping the largest: the scale is the one of least squared error.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    largest = np.maximum(np.abs(matrix).max(axis=0) / _LEVELS_4, np.finfo(np.float32).tiny)
    scale, least = largest, np.full(largest.shape, np.inf, np.float32)
    for share in np.linspace(0.3, 1.0, 15, dtype=np.float32):
        tried = np.maximum(share * largest, np.finfo(np.float32).tiny)
        error = np.sum((_rounded(matrix, tried) * tried - matrix) ** 2, axis=0)
        scale, least = np.where(error < least, tried, scale), np.minimum(error, least)
    entries = _rounded(matrix, scale).astype(np.int8).ravel()
    entries = np.append(entries, np.zeros(entries.size % 2, np.int8)).view(np.uint8) & 15
    return entries[::2] | entries[1::2] << 4, scale


def _rounded(matrix: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.clip(np.round(matrix / scale), -_LEVELS_4, _LEVELS_4)


def _from_halves(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the integers of `_halves_of_bytes` as float32 [*shape]."""
    entries = np.stack([packed & 15, packed >> 4], axis=1).ravel()[: np.prod(shape, dtype=int)]
    return ((entries ^ 8).astype(np.float32) - 8).reshape(shape)


def _array(entry: dict[str, Any], name: str) -> np.ndarray:
    require(entry["dtype"] in _STORED, name, f"be {', '.join(_STORED)}", Verbatim(entry["dtype"]))
    return np.frombuffer(entry["data"], _STORED[entry["dtype"]]).reshape(entry["shape"])
