"""Scales of guidance that depend on the level of noise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import arrays
from imagen_jax.checks import require, whole

Scale = float | jax.Array | Callable[[jax.Array], jax.Array]  # a function takes logsnr_t [B]


def interval(guidance_scale: Scale, low: float, high: float) -> Scale:
    """`guidance_scale` where low <= logsnr_t <= high, and 1 elsewhere (Kynkäänniemi et al. 2024)."""
    check_scale(guidance_scale)
    for name, bound in {"low": low, "high": high}.items():
        arrays.real(name, bound)
    arrays.at_most("low", low, f"high, {high}", high)

    def scale(logsnr_t: jax.Array) -> jax.Array:
        inside = (low <= logsnr_t) & (logsnr_t <= high)
        return jnp.where(inside, at(guidance_scale, logsnr_t), 1.0)

    return scale


def oscillating(guidance_scale: float, low: float, start: int, logsnr_grid: jax.Array) -> Scale:
    """`guidance_scale` for the first `start` steps of the grid, then `low` and it by turns.

    (Ho et al. 2022, Imagen Video, section 3.4.) The step is read off logsnr_t: the last level of `logsnr_grid` [T+1]
    that is not cleaner.
    """
    arrays.real("guidance_scale", guidance_scale)
    check_scale(guidance_scale)
    arrays.real("low", low)
    whole("start", start)
    arrays.array("logsnr_grid", logsnr_grid, ndim=1)
    tolerance = 1e-4  # a step's own logsnr may have been rounded on the way

    def scale(logsnr_t: jax.Array) -> jax.Array:
        step = jnp.sum(logsnr_grid[None, :] <= logsnr_t[:, None] + tolerance, axis=1) - 1
        is_low = (step >= start) & ((step - start) % 2 == 0)
        return jnp.where(is_low, low, guidance_scale)

    return scale


def check_scale(scale: Scale) -> None:
    """Raise a ValueError for what is neither finite numbers nor a function."""
    if callable(scale):
        return
    arrays.real("guidance_scale", scale)
    values = arrays.known(scale) if arrays.is_array(scale) else float(scale)
    require(values is None or bool(np.isfinite(values).all()), "guidance_scale", "be finite", scale)


def at(scale: Scale, logsnr_t: jax.Array) -> jax.Array:
    """Return the scale at logsnr_t: [B], float32."""
    value = scale(logsnr_t) if callable(scale) else scale
    name = "guidance_scale(logsnr_t)" if callable(scale) else "guidance_scale"
    arrays.per_image(name, value, "logsnr_t", logsnr_t)
    return jnp.broadcast_to(jnp.asarray(value, jnp.float32), logsnr_t.shape)
