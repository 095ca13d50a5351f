"""Keeping guided estimates in the range of images (paper section 2.3, figure A.31).

Thresholds act on x_hat after guidance, for each image by itself.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from imagen_jax import arrays
from imagen_jax.checks import number, require
from imagen_jax.diffusion.process import expand

FLOATS = ("float32", "bfloat16", "float16")


def static(x_hat: jax.Array) -> jax.Array:
    """Clips x_hat to [-1, 1]."""
    arrays.array("x_hat", x_hat)
    return jnp.clip(x_hat, -1, 1)


def dynamic(
    x_hat: jax.Array, percentile: float = 0.995, cap: float | None = None, floor: float = 1.0
) -> jax.Array:
    """Clips x_hat to [-s, s] and divides by s, for s = the quantile of |x_hat| of each image.

    Computes in float32 and returns x_hat's dtype. An infinite pixel becomes +-1 where s is finite, as it is
    under a cap. Where s is infinite, finite pixels become 0 and infinite ones NaN; one NaN makes the whole
    image NaN. Differentiation takes s for a constant.

    Args:
      x_hat: [B, H, W, C], or any shape with a leading B.
      percentile: in (0, 1]; the quantile is exact, with linear interpolation.
      cap: upper bound of s; None for no bound.
      floor: lower bound of s. At 1, images in range are unchanged; below, they may be stretched.
    """
    arrays.array("x_hat", x_hat, "floats", least_ndim=1)
    percentile = number("percentile", percentile, "(0, 1]", "give a fraction, such as 0.995")
    floor = number("floor", floor, "(0, inf)", "give 1 to keep images in range")
    if cap is not None:
        cap = number("cap", cap, fix="give None for no bound")
        require(cap >= floor, "cap", f"be at least floor, {floor:g}", cap, "raise it, or give None for no bound")
    x_hat = jnp.asarray(x_hat)
    s = expand(jnp.clip(quantile(jnp.abs(x_hat), percentile), floor, cap), x_hat)
    return (jnp.clip(x_hat.astype(jnp.float32), -s, s) / s).astype(x_hat.dtype)


def quantile(x: jax.Array, q: float) -> jax.Array:
    """The q-quantile of each image over all its other axes: [B, ...] -> float32 [B].

    Exact: the two pixels that it interpolates linearly are those of a full sort, of any number of pixels. No
    sort is made: passes over the image count the pixels below some values, 17 whatever the image (9 in half
    precision). An image that is spread over devices stays there, and each pass exchanges a few integers.
    An image with a NaN has the quantile NaN. Differentiation takes quantiles for constants.

    Args:
      x: [B, ...], float32, bfloat16 or float16; the rest is cast to float32.
      q: in [0, 1]; a Python number.
    """
    arrays.array("x", x, least_ndim=1)
    number("q", q, "[0, 1]")
    x = jnp.asarray(x)
    num = math.prod(x.shape[1:])
    require(num > 0, "x", "have at least one pixel in each image", x)
    position = float(q) * (num - 1)  # float64; float32 cannot place a rank in 1024 x 1024 x 3 values
    rank = int(position)
    weight = position - rank

    low, high, has_nan = _neighbours(x if x.dtype in FLOATS else x.astype(jnp.float32), rank)
    return jnp.where(has_nan, jnp.nan, _interpolate(low, high, weight))


@jax.jit  # for those who call outside jit: one compilation whatever the rank
def _neighbours(x: jax.Array, rank: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """[B] each: the values at `rank` and `rank + 1`, from 0, of each image's sorted pixels; has it a NaN?"""
    x = x.reshape(*x.shape[:2], math.prod(x.shape[2:]))  # the rows stay an axis: devices may share them
    keys = _keys(x)
    low = _key_at(keys, rank, bits=8 * x.dtype.itemsize)
    is_above = keys > _expand(low, keys)
    last = jnp.int32(2**31 - 1)
    num_above, next_above, has_nan = _reduce(
        [is_above.astype(jnp.int32), jnp.where(is_above, keys, last), jnp.isnan(x).astype(jnp.int32)],
        [jnp.int32(0), last, jnp.int32(0)],
        [jnp.add, jnp.minimum, jnp.maximum],
    )
    is_twice = num_above < math.prod(x.shape[1:]) - 1 - rank
    high = jnp.where(is_twice, low, next_above)
    return _values(low, x.dtype), _values(high, x.dtype), has_nan > 0


def _keys(x: jax.Array) -> jax.Array:
    """int32 that are ordered as x is; -0 comes before 0."""
    bits = lax.bitcast_convert_type(x, f"int{8 * x.dtype.itemsize}")
    return _mirror(bits).astype(jnp.int32)


def _values(keys: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The numbers of `dtype` whose keys these are, in float32."""
    bits = _mirror(keys.astype(f"int{8 * dtype.itemsize}"))
    return lax.bitcast_convert_type(bits, dtype).astype(jnp.float32)


def _mirror(bits: jax.Array) -> jax.Array:
    """Reverses the order of negative numbers, which floats keep as sign and magnitude; its own inverse."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _key_at(keys: jax.Array, rank: jax.Array, *, bits: int) -> jax.Array:
    """[B]: the key at `rank`, from 0, in each image's sorted keys; found from the top, two bits a pass."""

    def refine(i: int | jax.Array, found: jax.Array) -> jax.Array:
        shift = bits - 2 - 2 * i
        starts = [
            found + (jnp.int32(digit) << shift) for digit in (1, 2, 3)
        ]  # may wrap around, as they should
        num_below = _reduce(
            [(keys < _expand(start, keys)).astype(jnp.int32) for start in starts],
            [jnp.int32(0)] * 3,
            [jnp.add] * 3,
        )
        digit = sum((num <= rank).astype(jnp.int32) for num in num_below)
        return found + (digit << shift)

    lowest = jnp.full(keys.shape[:1], -(2 ** (bits - 1)), jnp.int32)
    # The first pass is outside the loop because what it returns is spread over devices as keys are.
    return lax.fori_loop(1, bits // 2, refine, refine(0, lowest))


def _reduce(operands: list[jax.Array], initial: list[jax.Array], combine: list[Callable]) -> list[jax.Array]:
    """[B] of each operand [B, ...], in one pass over memory; XLA would give each jnp.sum a pass on CPUs."""
    return lax.reduce(
        operands,
        initial,
        lambda left, right: [f(a, b) for f, a, b in zip(combine, left, right, strict=True)],
        range(1, operands[0].ndim),
    )


def _expand(key: jax.Array, keys: jax.Array) -> jax.Array:
    """[B] -> broadcastable against `keys` [B, ...]."""
    return key.reshape(key.shape + (1,) * (keys.ndim - 1))


def _interpolate(low: jax.Array, high: jax.Array, weight: float) -> jax.Array:
    """low + weight * (high - low), also where one is infinite or the difference overflows."""
    if weight == 0:
        return low
    span = high - low
    value = jnp.where(jnp.isfinite(span), low + weight * span, (1 - weight) * low + weight * high)
    return jnp.where(low == high, low, jnp.minimum(value, high))
