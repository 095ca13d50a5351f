"""Inpainting and outpainting. A mask is 1 where to paint and 0 where the image is kept, [B, H, W, 1].

Wherever the image is known, x_hat is the image itself. A sampler then gives z_s there the exact marginal
N(alpha_s x, sigma_s^2 I): a deterministic one keeps each pixel's own noise, a stochastic one draws from the
posterior of x. (ddpm with gamma > 0 adds the same surplus of noise to it as to the rest.) `resample` of
`samplers.sample` goes back and forth between levels (RePaint, Lugmayr et al. 2022), which lets the painted
part agree with the known one.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import arrays, checks
from imagen_jax.checks import Verbatim, require
from imagen_jax.diffusion import denoisers


def inpainting(denoise: denoisers.Denoiser, image: jax.Array, mask: jax.Array) -> denoisers.Denoiser:
    """`denoise`, but its estimate is `image` [B, H, W, C] where `mask` [B, H, W, 1] is 0."""
    _check(image, mask)
    return denoisers.then(denoise, lambda x_hat: merge(x_hat, image, mask), noise_too=True)


def merge(x: jax.Array, image: jax.Array, mask: jax.Array) -> jax.Array:
    """x where `mask` is 1, the image where it is 0: [B, H, W, C]."""
    _check(image, mask)
    arrays.like("x", x, "image", image)
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
    arrays.array("image", image, ndim=4)
    borders = {"top": top, "bottom": bottom, "left": left, "right": right}
    is_right = all(checks.is_whole(border) and 0 <= border <= 2**16 for border in borders.values())
    rule = f"be whole numbers from 0 to {2**16} and not all 0"
    require(is_right and any(borders.values()), "top, bottom, left and right", rule, tuple(borders.values()))
    pad = ((0, 0), (top, bottom), (left, right), (0, 0))
    known = jnp.zeros((*image.shape[:3], 1))
    return jnp.pad(image, pad, mode="edge"), jnp.pad(known, pad, constant_values=1.0)


def check_mask(mask: Any) -> None:
    """Raise a ValueError unless a mask says 1 or 0; inside jit its values are not known."""
    values = arrays.known(arrays.array("mask", mask, fix="1 is paint here, 0 is keep"))
    if values is not None and values.size:
        values = np.unique(values.astype(np.float32))
        got = Verbatim(f"values from {values[0]:g} to {values[-1]:g}")
        require(bool(np.isin(values, (0, 1)).all()), "mask", "hold 1 (paint here) and 0 (keep) only", got)


def _check(image: jax.Array, mask: jax.Array) -> None:
    arrays.floats_of_pictures("image", arrays.array("image", image, ndim=4))
    require(arrays.is_array(mask), "mask", "be an array [B, H, W, 1] of 1 and 0", mask)
    shape = (*image.shape[:3], 1)
    require(tuple(mask.shape) == shape, "mask", f"have the image's size, {list(shape)}", Verbatim(tuple(mask.shape)))
    check_mask(mask)
