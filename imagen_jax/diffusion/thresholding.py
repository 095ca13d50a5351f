"""Keeping guided estimates in the range of images (paper section 2.3, figure A.31).

Thresholds act on x_hat after guidance, for each image by itself.
"""

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.process import expand


def static(x_hat: jax.Array) -> jax.Array:
    """Clips x_hat to [-1, 1]."""
    return jnp.clip(x_hat, -1, 1)


def dynamic(x_hat: jax.Array, percentile: float = 0.995, cap: float | None = None) -> jax.Array:
    """Clips x_hat to [-s, s] and divides by s, for s = the quantile of |x_hat| of each image.

    Args:
      x_hat: [B, H, W, C].
      percentile: in (0, 1]; the quantile is exact, with linear interpolation.
      cap: upper bound of s; None for no bound. s is at least 1, so images in range are unchanged.
    """
    s = quantile(jnp.abs(x_hat.astype(jnp.float32)), percentile)
    s = expand(jnp.clip(s, 1.0, cap), x_hat)
    return (jnp.clip(x_hat, -s, s) / s).astype(x_hat.dtype)


def quantile(x: jax.Array, q: float) -> jax.Array:
    """The q-quantile of each image over all its other axes: [B, ...] -> [B]."""
    return jnp.quantile(x.reshape(x.shape[0], -1), q, axis=1)
