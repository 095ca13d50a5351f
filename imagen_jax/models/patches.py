"""Patches of pixels as channels: space-to-depth, and the Haar wavelet transform.

Both are orthonormal maps between images [B, H, W, C] and patches [B, H/p, W/p, C p^2], so that noise stays white, the
mean squared error stays the same, and a network that works on patches computes at 1/p^2 of the positions.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from einops import rearrange

PATCH_SIZES = (1, 2, 4, 8, 16)
PatchTransform = Literal["space_to_depth", "haar"]


def patchify(images: jax.Array, patch_size: int, transform: PatchTransform) -> jax.Array:
    """Return images [B, H, W, C] as patches [B, H/p, W/p, C p^2] of the same type; p = 1 changes nothing.

    Args:
      images: H and W are multiples of p.
      patch_size: p, one of PATCH_SIZES.
      transform: "space_to_depth": channels are the pixels of a patch, row by row. "haar": coefficients of log2(p)
        levels of the two-dimensional Haar transform (Mallat 1989): p times the patch's mean, then the details of each
        level, coarsest first.
    """
    if patch_size == 1:
        return images
    return _haar(images, patch_size) if transform == "haar" else _space_to_depth(images, patch_size)


def unpatchify(patches: jax.Array, patch_size: int, transform: PatchTransform) -> jax.Array:
    """Return the images [B, H, W, C] of patches [B, H/p, W/p, C p^2]: the inverse of `patchify`."""
    if patch_size == 1:
        return patches
    return _inverse_haar(patches, patch_size) if transform == "haar" else _depth_to_space(patches, patch_size)


def _space_to_depth(x: jax.Array, p: int) -> jax.Array:
    return rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=p, q=p)


def _depth_to_space(x: jax.Array, p: int) -> jax.Array:
    return rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=p, q=p)


def _haar(x: jax.Array, p: int) -> jax.Array:
    if p == 1:
        return x
    low, *details = _hadamard(rearrange(x, "b (h p) (w q) c -> (p q) b h w c", p=2, q=2))
    return jnp.concatenate([_haar(low, p // 2), _space_to_depth(jnp.concatenate(details, -1), p // 2)], -1)


def _inverse_haar(x: jax.Array, p: int) -> jax.Array:
    if p == 1:
        return x
    low, details = jnp.split(x, [x.shape[-1] // 4], -1)
    bands = [_inverse_haar(low, p // 2), *jnp.split(_depth_to_space(details, p // 2), 3, -1)]
    return rearrange(_hadamard(bands), "(p q) b h w c -> b (h p) (w q) c", p=2, q=2)


def _hadamard(parts: Any) -> list[jax.Array]:
    """Return the orthonormal Hadamard transform of four arrays, which is its own inverse."""
    a, b, c, d = parts
    return [(a + b + c + d) / 2, (a - b + c - d) / 2, (a + b - c - d) / 2, (a - b - c + d) / 2]
