"""Guidance turns a conditional denoiser into a denoiser: (z_t, logsnr_t) -> x_hat."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

DenoiseFn = Callable[[jax.Array, jax.Array], jax.Array]
CondDenoiseFn = Callable[[jax.Array, jax.Array, Any], jax.Array]


def classifier_free(denoise: CondDenoiseFn, cond: Any, null: Any, guidance_scale: float) -> DenoiseFn:
    """x_hat = w x_hat(cond) + (1 - w) x_hat(null) (paper equation 2), both in one doubled batch.

    The weights sum to 1, so guiding x is the same as guiding eps or v.

    Args:
      denoise: (z_t [B, H, W, C], logsnr_t [B], cond) -> x_hat.
      cond, null: pytrees of equal structure, leaves [B, ...].
      guidance_scale: w; at 1 only the conditional call is made.
    """
    if isinstance(guidance_scale, int | float) and guidance_scale == 1:
        return lambda z_t, logsnr_t: denoise(z_t, logsnr_t, cond)
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cond, null)

    def guided(z_t: jax.Array, logsnr_t: jax.Array) -> jax.Array:
        x_hat = denoise(jnp.concatenate([z_t, z_t]), jnp.concatenate([logsnr_t, logsnr_t]), both)
        x_cond, x_null = jnp.split(x_hat, 2)
        return x_null + guidance_scale * (x_cond - x_null)

    return guided
