"""Checks of arrays that a user gives: kind and shape, also of tracers, and values where they are known.

Errors have the form of `checks`. Values are checked on the host, and only those of arrays that are fully addressable
by this process; inside `jax.jit` nothing is added to the program.
"""

import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checks import Verbatim, is_whole, require

# Rounding may exceed 1 by this: bfloat16 has steps of 0.0078 there.
_ROUNDING = 0.01
_LARGEST = float(np.finfo(np.float32).max)
_MAX_NOISE = 20.0  # standard normal numbers in float32 stay below 6
_KINDS = {"floats": jnp.floating, "whole numbers": jnp.integer, "bool": jnp.bool_}


def is_array(value: Any) -> bool:
    """Whether `value` is an array of JAX or numpy, a tracer, or the shape of one."""
    return isinstance(value, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def has_values(value: Any) -> bool:
    """Whether `value` is an array or a tracer, and not a `jax.ShapeDtypeStruct`."""
    return is_array(value) and not isinstance(value, jax.ShapeDtypeStruct)


def array(
    name: str, value: Any, kind: str = "real", *, ndim: int | None = None, least_ndim: int = 0, fix: str = ""
) -> Any:
    """Return `value` after checking that it is an array.

    Args:
      name: of the value in messages.
      value: anything.
      kind: "floats", "whole numbers", "bool", or "real" for all of these.
      ndim, least_ndim: exact and least number of axes.
      fix: the end of the message.

    Raises:
      ValueError: it is no array, or of another kind.
    """
    what = f"an array of {'numbers' if kind == 'real' else kind}"
    num = least_ndim if ndim is None else ndim
    if num:
        what += f" with {'at least ' if ndim is None else ''}{num} {'axis' if num == 1 else 'axes'}"
    require(has_values(value), name, f"be {what}", value, fix)
    wanted = (jnp.floating, jnp.integer, jnp.bool_) if kind == "real" else (_KINDS[kind],)
    is_kind = any(jnp.issubdtype(value.dtype, each) for each in wanted)
    has_axes = value.ndim >= least_ndim if ndim is None else value.ndim == ndim
    require(
        is_kind and has_axes, name, f"be {what}", Verbatim(f"{value.dtype} of shape {tuple(value.shape)}"), fix
    )
    return value


def real(name: str, value: Any) -> Any:
    """Return `value` after checking that it is a real number or an array of them."""
    if isinstance(value, numbers.Real) and not isinstance(value, bool | np.generic):
        is_too_large = is_whole(value) and abs(value) > 2**127
        require(not is_too_large, name, "be a number that float32 holds", value)
        return value
    require(has_values(value), name, "be a number or an array of numbers", value)
    return array(name, value)


def leaves(name: str, tree: Any, what: str) -> None:
    """Raise a ValueError unless all leaves of `tree` are arrays or tracers; `what` describes them in the message."""
    wrong = [leaf for leaf in jax.tree.leaves(tree) if not has_values(leaf)]
    got = Verbatim("jax.ShapeDtypeStruct") if wrong and is_array(wrong[0]) else wrong and wrong[0]
    require(not wrong, name, f"hold arrays, {what}", got)


def like(name: str, value: Any, other_name: str, other: Any) -> Any:
    """Return `value` after checking that it is an array of the shape of the array `other`."""
    array(name, value)
    rule = f"have the shape of {other_name}, {list(other.shape)}"
    require(value.shape == other.shape, name, rule, Verbatim(tuple(value.shape)))
    return value


def per_image(name: str, value: Any, images_name: str, images: Any) -> Any:
    """Return `value` after checking that it is a number or an array [B], for `images` [B, ...]."""
    real(name, value)
    shape = np.shape(value) if not is_array(value) else tuple(value.shape)
    rule = f"be a number or have one for each row of {images_name}, [{images.shape[0]}]"
    require(shape in ((), (images.shape[0],)), name, rule, Verbatim(shape))
    return value


def known(value: Any) -> np.ndarray | None:
    """Return the values of an array; None for tracers, shapes, random keys and arrays with parts on other hosts.

    For one image repeated by numpy's broadcasting, return the first row only.
    """
    if isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct):
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    if jnp.issubdtype(value.dtype, jax.dtypes.extended):  # random keys
        return None
    values = np.asarray(value)
    is_repeated = values.ndim > 1 and values.shape[0] > 0 and values.strides[0] == 0
    return values[:1] if is_repeated else values


def finite(name: str, value: Any, what: str = "") -> None:
    """Raise a ValueError if `value` is known to hold NaN or what is infinite in float32.

    Args:
      name: of the value in messages.
      value: an array.
      what: describes the value in the message, such as "a picture in [-1, 1]".
    """
    values = known(value)
    if values is None or values.size == 0:
        return
    low, high = _ends(values)
    if not (-_LARGEST <= low and high <= _LARGEST):
        with np.errstate(over="ignore"):
            bad = ~np.isfinite(values.astype(np.float32))
        rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1)) if bad.ndim else np.array([0])
        got = Verbatim(f"{bad.sum()} of {bad.size} that are NaN or infinite, the first in row {rows[0]}")
        require(False, name, f"hold finite numbers{f' ({what})' if what else ''}", got)


def pictures(name: str, value: Any) -> None:
    """Raise a ValueError if `value`, an array of floats, is known to have values outside [-1, 1]."""
    finite(name, value, "a picture in [-1, 1]")
    low, high = _known_ends(value)
    fix = "x / 127.5 - 1 of 0..255" if low >= -_ROUNDING and high > 2 else "clip it, or scale it"
    got = Verbatim(f"values from {low:g} to {high:g}")
    require(-1 - _ROUNDING <= low and high <= 1 + _ROUNDING, name, "be in [-1, 1]", got, fix)
    if low >= 0 and high - low > 0.25:
        warnings.warn(
            f"{name} has no value below 0, as if it were in [0, 1]; pictures are in [-1, 1], where -1 is black: "
            "x * 2 - 1 of 0..1.",
            stacklevel=2,
        )


def noise(name: str, value: Any) -> None:
    """Raise a ValueError if `value`, an array of floats, is known not to be standard normal noise."""
    finite(name, value, "standard normal noise")
    low, high = _known_ends(value)
    got = Verbatim(f"values from {low:g} to {high:g}")
    require(-_MAX_NOISE <= low and high <= _MAX_NOISE, name, "be standard normal noise", got)


def within(name: str, value: Any, low: float, high: float) -> None:
    """Raise a ValueError if `value`, a number or an array of them, is known to be outside [low, high]."""
    values = known(value) if is_array(value) else np.asarray(value)
    if values is not None and values.size:
        least, largest = _ends(values)
        got = Verbatim(f"{least:g}" if values.size == 1 else f"values from {least:g} to {largest:g}")
        require(low <= least and largest <= high, name, f"be in [{low:g}, {high:g}]", got)


def at_most(name: str, value: Any, other_name: str, other: Any) -> None:
    """Raise a ValueError unless `value` <= `other` wherever both, numbers or arrays of them, are known."""
    values = [known(each) if is_array(each) else each for each in (value, other)]
    is_known = all(each is not None for each in values)
    holds = not is_known or bool(np.all(values[0] <= values[1]))
    require(holds, name, f"be at most {other_name}", value)


def floats_of_pictures(name: str, value: Any) -> Any:
    """Return `value` after checking that it is an array of floats; pictures in 0..255 have to be scaled first."""
    require(has_values(value), name, "be an array of floats in [-1, 1]", value)
    is_float = jnp.issubdtype(value.dtype, jnp.floating)
    got = Verbatim(f"{value.dtype} of shape {tuple(value.shape)}")
    require(is_float, name, "be float in [-1, 1]", got, "x / 127.5 - 1 of 0..255")
    return value


def keys(name: str, value: Any) -> Any:
    """Return `value` after checking that it is an array [B] of random keys, or of their raw bits [B, 2] uint32."""
    fix = "make them with image_keys(seed, num)"
    rule = "be [B], one for each image, as from image_keys"
    require(is_array(value), name, rule, value, fix)
    is_typed = jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
    raw = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    is_raw = value.dtype == raw.dtype and value.ndim == 2 and value.shape[1:] == raw.shape
    is_right = is_raw or (is_typed and value.ndim == 1)
    require(
        is_right and value.shape[0] > 0, name, rule, Verbatim(f"{value.dtype} of shape {tuple(value.shape)}"), fix
    )
    return value


def key(name: str, value: Any) -> Any:
    """Return `value` after checking that it is one random key, as from `jax.random.key`."""
    is_typed = is_array(value) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and value.ndim == 0
    raw = jax.eval_shape(lambda: jax.random.PRNGKey(0))
    is_raw = is_array(value) and value.dtype == raw.dtype and value.shape == raw.shape
    require(is_typed or is_raw, name, "be one random key, as from jax.random.key", value)
    return value


def _known_ends(value: Any) -> tuple[float, float]:
    """Return (least, largest), or (0, 0) where the values are not known."""
    values = known(value)
    return (0.0, 0.0) if values is None or values.size == 0 else _ends(values)


def _ends(values: np.ndarray) -> tuple[float, float]:
    """Return (least, largest); NaN if there is one."""
    if values.dtype not in (np.float32, np.float64):  # numpy has no order for bfloat16's NaN
        values = values.astype(np.float32)
    return float(values.min()), float(values.max())


def sequence(name: str, value: Any, what: str) -> Sequence[Any]:
    """Return a list, a tuple or an array with one axis as a list; `what` names its entries in the message."""
    is_known = is_array(value) and value.ndim == 1 and known(value) is not None
    require(isinstance(value, list | tuple) or is_known, name, f"be a list or tuple of {what}", value)
    return value.tolist() if is_known else list(value)
