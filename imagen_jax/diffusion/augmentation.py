"""Noise-conditioning augmentation of the low-res image (paper section 2.5, figure A.32).

`aug_level` in [0, 1] is the sigma of the noise: z = sqrt(1 - aug_level^2) low_res + aug_level eps, which
means the same on every schedule. The network sees it as `aug_logsnr`. Training and sampling share
this code; the image is brought to the stage's resolution first, so the noise is white at that size.
"""

import jax
import jax.numpy as jnp

from imagen_jax import arrays
from imagen_jax.diffusion import process
from imagen_jax.diffusion.schedules import LOGSNR_MAX, LOGSNR_MIN


def level_to_logsnr(aug_level: jax.Array) -> jax.Array:
    """log((1 - aug_level^2) / aug_level^2), clipped to the range of the schedules; float32."""
    level = jnp.asarray(arrays.real("aug_level", aug_level), jnp.float32)
    arrays.within("aug_level", aug_level, 0, 1)
    logsnr = jnp.log1p(-(level**2)) - 2 * jnp.log(level)
    return jnp.clip(logsnr, LOGSNR_MIN, LOGSNR_MAX)


def augment(low_res: jax.Array, aug_level: jax.Array, eps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(noised low_res, aug_logsnr [B]) for a level of each image.

    Args:
      low_res: [B, H, W, C] in [-1, 1], already at the resolution of the stage.
      aug_level: [B] in [0, 1].
      eps: standard normal like low_res.
    """
    arrays.array("low_res", low_res, least_ndim=1)
    arrays.per_image("aug_level", aug_level, "low_res", low_res)
    aug_logsnr = level_to_logsnr(aug_level)
    return process.diffuse(low_res, eps, aug_logsnr), aug_logsnr
