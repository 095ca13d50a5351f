"""Weights of a model directory: every tensor of its files is matched with a parameter, then loaded, one by one."""

import collections
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax import sharding
from imagen_jax.text import families, layers, model_files
from imagen_jax.text.families import Family, make_module, read_config
from imagen_jax.text.model_files import Stored


class Tensor(NamedTuple):
    """One tensor of a checkpoint, or its `part`-th of `parts` along the first axis, and the parameter it becomes."""

    file: Path
    name: str
    path: tuple[str, ...]
    transposed: bool
    part: int
    parts: int


def load_model(
    directory: Path, dtype: Any, param_dtype: Any = None, *, output: str = "last", mesh: Mesh | None = None
) -> tuple[nn.Module, Any]:
    """Return the module of a directory and its parameters, as `make_module` and `load_params` do."""
    module = make_module(directory, dtype, param_dtype, output)
    return module, load_params(directory, module, mesh)


def load_params(
    directory: Path, module: nn.Module, mesh: Mesh | None = None, family: Family | None = None
) -> Any:
    """Return the parameters {"params": ...} of `module` from the weights in `directory`.

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
        with np.errstate(over="ignore"):  # of float64; reported below
            *parameters, is_finite = cast(sharding.shard_array(_read(tensor), mesh))
        if not is_finite:  # waits for the transfer, so that only one tensor is held at a time
            raise ValueError(
                f"{tensor.file}: the tensor {tensor.name} must be finite as {jnp.dtype(dtype).name}; got NaN or "
                "infinity: the file is damaged, or of a training that failed; get it again, or another model."
            )
        loaded |= zip(paths, parameters, strict=True)
    return {"params": flax.traverse_util.unflatten_dict(loaded)}


def locate(directory: Path, module: nn.Module, family: Family | None = None) -> list[Tensor]:
    """Return where in the files the parameters of `module` are; only headers, and tensors stored twice, are read.

    Every tensor of the files is accounted for. Nothing is built before the sizes of the module prove to be those
    of the files.

    Raises:
      ValueError: a file cannot be read, or a tensor is missing, unknown, of another shape than config.json
        says, or there twice with other values.
    """
    family = family or read_config(directory)[0]
    stored = list(model_files.stored_tensors(model_files.weight_files(directory)))
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
                    f"{file} must hold tensors of its config.json alone; got {name}, which such a model does not have: "
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
                    raise ValueError(
                        f"{file}: the tensor {name} must be there once; got it twice, with other values: keep one."
                    )
    return list(tensors.values())


def _check_axes(directory: Path, config: Any, stored: list[Stored]) -> None:
    """Raise ValueError if a size of `config` is beyond the longest axis of all tensors."""
    longest = max((size for tensor in stored for size in tensor.shape), default=0)
    for key, size in config.axes.items():
        if size > longest:
            raise ValueError(
                f"{directory}: {key} of the config must fit the weights, whose longest axis has {longest} entries; got "
                f"{size}: get weights and config.json from the same model."
            )


def _by_table_name(stored: list[Stored], config: Any, family: Family) -> dict[str, list[Stored]]:
    """Return the tensors that are needed, by their name in the table."""
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
    """Return (path, transposed) of the parts of each tensor in the table; raise ValueError if the files lack one."""
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
            f"{directory}: the weights must hold every tensor that config.json asks for; they lack the tensor "
            f"{missing[0]} ({count}): get weights and config.json from the same model."
        )
    return rows


def _shapes(module: nn.Module, family: Family | None = None) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
    """Return the shape and dtype of each parameter, by its path."""
    inputs = (family.inputs if family else families.tokens)(module.config)
    return flax.traverse_util.flatten_dict(jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"])


def _scale(path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the path of the scale of an int8 parameter."""
    return *path[:-1], "scale"


def _read(tensor: Tensor) -> np.ndarray:
    return np.split(model_files.read_tensor(tensor.file, tensor.name), tensor.parts)[tensor.part]


@functools.lru_cache
def _caster(transposed: bool, dtype: Any, axis: int, shardings: tuple) -> Callable:
    """Return a compiled function from a checkpoint's tensor to the parameter, its scale if int8, and whether all is
    finite."""

    def cast(values: jax.Array) -> tuple[jax.Array, ...]:
        values = values.T if transposed else values
        if dtype == jnp.int8:
            parameter, scale = layers.quantize(values, axis)
            return parameter, scale, jnp.isfinite(scale).all()  # the scale is made of the largest value
        parameter = values.astype(dtype)
        return parameter, jnp.isfinite(parameter).all()

    return jax.jit(cast, out_shardings=None if shardings[0] is None else (*shardings, None))
