"""Noise schedules of the variance-preserving process, in log-SNR.

    z_t = alpha_t x + sigma_t eps,   alpha_t^2 + sigma_t^2 = 1,   logsnr = log(alpha_t^2 / sigma_t^2)

A schedule maps the time t in [0, 1] (1 is noise) to logsnr, decreasing, clipped to
[LOGSNR_MIN, LOGSNR_MAX], and has an inverse on that range.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# sigma (or alpha) is 4.5e-5 at the ends: below the step of 8-bit pixels, far above float32's underflow.
LOGSNR_MIN, LOGSNR_MAX = -20.0, 20.0

# Integral of beta(t) = 0.1 + 19.9 t: the paper's 1000 steps of beta from 1e-4 to 0.02, in continuous time.
_BETA_MIN, _BETA_SPAN = 0.1, 19.9


class Schedule(NamedTuple):
    """A noise schedule: `logsnr(t)` and `inverse(logsnr)` -> t, both elementwise, float32."""

    logsnr: Callable[[jax.Array], jax.Array]
    inverse: Callable[[jax.Array], jax.Array]


def make(name: str, size: int = 64) -> Schedule:
    """The schedule called `name`; `size` is the image side in pixels that "shifted_cosine" is for."""
    if name == "cosine":
        return Schedule(cosine, cosine_inverse)
    if name == "linear":
        return Schedule(linear, linear_inverse)
    if name == "shifted_cosine":
        return Schedule(partial(shifted_cosine, size=size), partial(shifted_cosine_inverse, size=size))
    raise ValueError(f"schedule must be cosine, linear or shifted_cosine; got {name!r}.")


def alpha_sigma(logsnr: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(alpha, sigma) in float32, each from its own sigmoid so that neither loses its small values."""
    logsnr = jnp.asarray(logsnr, jnp.float32)
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def cosine(t: jax.Array) -> jax.Array:
    """logsnr(t) = -2 log tan(pi t / 2), i.e. alpha_t = cos(pi t / 2) (Nichol & Dhariwal 2021, s = 0)."""
    t = jnp.asarray(t, jnp.float32)
    u = jnp.where(t <= 0.5, t, 1 - t)  # antisymmetric about t = 1/2: keeps full precision near t = 1
    logsnr = -2 * jnp.log(jnp.tan(jnp.pi / 2 * u))
    return _clip(jnp.where(t <= 0.5, logsnr, -logsnr))


def cosine_inverse(logsnr: jax.Array) -> jax.Array:
    """t with cosine(t) = logsnr."""
    return 2 / jnp.pi * jnp.arctan(jnp.exp(-jnp.asarray(logsnr, jnp.float32) / 2))


def linear(t: jax.Array) -> jax.Array:
    """logsnr(t) = -log(expm1(0.1 t + 9.95 t^2)): beta rises linearly (paper's 256 -> 1024 stage)."""
    t = jnp.asarray(t, jnp.float32)
    return _clip(-jnp.log(jnp.expm1(_BETA_MIN * t + _BETA_SPAN / 2 * t**2)))


def linear_inverse(logsnr: jax.Array) -> jax.Array:
    """t with linear(t) = logsnr: the root of the quadratic, in its cancellation-free form."""
    integral = jax.nn.softplus(-jnp.asarray(logsnr, jnp.float32))
    return 2 * integral / (_BETA_MIN + jnp.sqrt(_BETA_MIN**2 + 2 * _BETA_SPAN * integral))


def shifted_cosine(t: jax.Array, size: int = 256) -> jax.Array:
    """The cosine schedule moved by 2 log(64 / size): the same noise at 64x64 after averaging.

    Args:
      t: [...] in [0, 1].
      size: side of the image in pixels. (Hoogeboom et al. 2023, equation 4.)
    """
    return _clip(cosine(t) + 2 * np.log(64 / size))


def shifted_cosine_inverse(logsnr: jax.Array, size: int = 256) -> jax.Array:
    """t with shifted_cosine(t, size) = logsnr."""
    return cosine_inverse(jnp.asarray(logsnr, jnp.float32) - 2 * np.log(64 / size))


def grid(schedule: Schedule, steps: int) -> jax.Array:
    """logsnr on `steps` + 1 equal steps of t from 1 to 0: [T+1], noisiest first."""
    return schedule.logsnr(jnp.linspace(1, 0, steps + 1, dtype=jnp.float32))


def _clip(logsnr: jax.Array) -> jax.Array:
    return jnp.clip(logsnr, LOGSNR_MIN, LOGSNR_MAX)
