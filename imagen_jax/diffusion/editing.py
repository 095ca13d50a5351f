"""Inpainting and outpainting. A mask is 1 where to paint and 0 where the image is kept, [B, H, W, 1].

Wherever the image is known, x_hat is the image itself. A sampler then gives z_s there the exact marginal
N(alpha_s x, sigma_s^2 I): a deterministic one keeps each pixel's own noise, a stochastic one draws from the
posterior of x. (ddpm with gamma > 0 adds the same surplus of noise to it as to the rest.) `resample` of
`samplers.sample` goes back and forth between levels (RePaint, Lugmayr et al. 2022), which lets the painted
part agree with the known one.
"""

import jax
import jax.numpy as jnp

from imagen_jax.diffusion import guidance


def inpainting(denoise: guidance.Denoiser, image: jax.Array, mask: jax.Array) -> guidance.Denoiser:
    """`denoise`, but its estimate is `image` [B, H, W, C] where `mask` [B, H, W, 1] is 0."""
    return guidance.then(denoise, lambda x_hat: merge(x_hat, image, mask), noise_too=True)


def merge(x: jax.Array, image: jax.Array, mask: jax.Array) -> jax.Array:
    """x where `mask` is 1, the image where it is 0: [B, H, W, C]."""
    return jnp.where(mask > 0, x, image.astype(x.dtype))


def outpainting(
    image: jax.Array, *, top: int = 0, bottom: int = 0, left: int = 0, right: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Adds borders to paint.

    Args:
      image: [B, H, W, C].
      top, bottom, left, right: pixels to add, at least 0 and not all 0.

    Returns:
      (larger image [B, H', W', C], its borders repeated outwards; mask [B, H', W', 1], 1 there), for `inpainting`.
    """
    if min(top, bottom, left, right) < 0 or top + bottom + left + right == 0:
        raise ValueError(
            f"top, bottom, left and right must be at least 0 and not all 0; got {(top, bottom, left, right)}."
        )
    pad = ((0, 0), (top, bottom), (left, right), (0, 0))
    known = jnp.zeros((*image.shape[:3], 1))
    return jnp.pad(image, pad, mode="edge"), jnp.pad(known, pad, constant_values=1.0)
