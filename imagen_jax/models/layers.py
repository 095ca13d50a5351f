"""Convolutions, resampling and norms of all U-Nets."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce, repeat

from imagen_jax.models import winograd
from imagen_jax.models.patches import PatchTransform, patchify
from imagen_jax.sharding import gather_kernel_if_height_sharded

Dtype = Any
Activation = Callable[[jax.Array], jax.Array]
zeros = nn.initializers.zeros_init()


@dataclasses.dataclass(frozen=True)
class Style:
    """What a published network does otherwise than this package's U-Nets.

    Attributes:
      activation: of residual blocks and output layers.
      embedding_activation: of the conditioning vector where it enters FiLM; None: it enters as it is.
      groups: of group norms; None: at most 32, of at least 4 channels each.
      text_groups: of a group norm of the text before attention, over all tokens; None: a layer norm of each token.
      epsilon: added to the variance in layer norms.
    """

    activation: Activation = nn.silu
    embedding_activation: Activation | None = nn.silu
    groups: int | None = None
    text_groups: int | None = None
    epsilon: float = 1e-6


OWN_STYLE = Style()


def conv_general_dilated(x: jax.Array, kernel: jax.Array, *args: Any, **options: Any) -> jax.Array:
    """Return `jax.lax.conv_general_dilated` of x [B, H, W, C] and a kernel [KH, KW, C, C'], on any mesh."""
    return jax.lax.conv_general_dilated(x, gather_kernel_if_height_sharded(kernel), *args, **options)


def padded_conv(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """Return `conv_general_dilated` of these, by `winograd.conv3x3` where that is faster."""
    if strides == (1, 1) and winograd.pays(x, kernel) and jax.sharding.get_abstract_mesh().size <= 1:
        return winograd.conv3x3(x, kernel)
    return conv_general_dilated(x, kernel, strides, padding, **options)


def conv_of_upsampled(x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **options: Any) -> jax.Array:
    """Return the padded 3x3 convolution of `upsample(x)`, [B, 2H, 2W, C'], in 4/9 of the multiplications.

    Of the three rows under the kernel two are copies of one row of x, so that each of the four pixels made from one is
    a 2x2 convolution of x with sums of the kernel's rows and columns; the larger image is never made.

    Args:
      x: [B, H, W, C].
      kernel: [3, 3, C, C'].
      strides, padding: those of the 3x3 convolution; not used.
      **options: as in `jax.lax.conv_general_dilated`.
    """
    del strides, padding

    def convolve(row: int, column: int) -> jax.Array:
        part = _add_neighbours(_add_neighbours(kernel, 0, row), 1, column).astype(x.dtype)
        return conv_general_dilated(x, part, (1, 1), ((1 - row, row), (1 - column, column)), **options)

    rows = [jnp.stack([convolve(row, column) for column in (0, 1)], axis=3) for row in (0, 1)]
    return rearrange(jnp.stack(rows, axis=2), "b h p w q c -> b (h p) (w q) c")


def _add_neighbours(kernel: jax.Array, axis: int, phase: int) -> jax.Array:
    """Return the kernel with two of the three entries along `axis` added in float32: the last in phase 0, the first in
    phase 1."""
    first, middle, last = jnp.split(kernel.astype(jnp.float32), 3, axis)
    return jnp.concatenate([first + middle, last] if phase else [first, middle + last], axis)


def conv3x3(
    features: int, dtype: Dtype, name: str, stride: int = 1, zero_init: bool = False, upsampled: bool = False
) -> nn.Conv:
    """Return a 3x3 convolution, padded so that stride s divides the size by exactly s.

    upsampled: of its input enlarged by `upsample`; see `conv_of_upsampled`.
    """
    return nn.Conv(
        features,
        (3, 3),
        (stride, stride),
        padding=1,
        kernel_init=zeros if zero_init else nn.linear.default_kernel_init,
        dtype=dtype,
        conv_general_dilated=conv_of_upsampled if upsampled else padded_conv,
        name=name,
    )


def cached(module: nn.Module, name: str, compute: Callable[[], Any]) -> Any:
    """Return compute(), or its value from an earlier call if the collection "features" holds it.

    For values that depend on the condition alone: `apply(..., mutable=["features"])` stores them, and an `apply` that
    is given the collection reads them instead of computing them at every step of sampling.
    """
    if module.has_variable("features", name):
        return module.get_variable("features", name)
    value = compute()
    if not module.is_initializing() and module.is_mutable_collection("features"):
        module.put_variable("features", name, value)
    return value


def gelu(h: jax.Array) -> jax.Array:
    """Return the exact GELU of h, by erf in float32 as torch has it; that of flax is by erfc and slower on CPUs."""
    x = h.astype(jnp.float32)
    return (0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))).astype(h.dtype)


class InputConv(nn.Module):
    """3x3 convolution of the patches of z_t and of the conditioning images; the terms of the latter are cached.

    Attributes:
      features: of the output.
      dtype: of the computation.
      patch_size, patch_transform: see `patches.patchify`.
    """

    features: int
    dtype: Dtype
    patch_size: int = 1
    patch_transform: PatchTransform = "space_to_depth"

    @nn.compact
    def __call__(self, z_t: jax.Array, images: jax.Array | None) -> jax.Array:
        """Return [B, H/p, W/p, features] of z_t [B, H, W, C] and images [B, H, W, C']."""
        z_t, images = (
            None if a is None else patchify(a, self.patch_size, self.patch_transform) for a in (z_t, images)
        )
        channels = z_t.shape[-1] + (0 if images is None else images.shape[-1])
        kernel_shape = (3, 3, channels, self.features)
        kernel = self.param("kernel", nn.linear.default_kernel_init, kernel_shape).astype(self.dtype)
        bias = self.param("bias", zeros, (self.features,)).astype(self.dtype)[None, None, None, :]

        def conv(x: jax.Array, part: jax.Array) -> jax.Array:
            return conv_general_dilated(
                x.astype(self.dtype), part, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        own, other = kernel[:, :, : z_t.shape[-1]], kernel[:, :, z_t.shape[-1] :]
        if images is None:
            return conv(z_t, own) + bias
        if self.has_variable("features", "images") or self.is_mutable_collection("features"):
            return conv(z_t, own) + cached(self, "images", lambda: conv(images, other) + bias)
        return conv(jnp.concatenate([z_t, images], axis=-1), kernel) + bias


def downsample(h: jax.Array) -> jax.Array:
    """Return h [B, H, W, C] averaged to [B, H/2, W/2, C]."""
    return reduce(h, "b (h p) (w q) c -> b h w c", "mean", p=2, q=2)


def upsample(h: jax.Array) -> jax.Array:
    """Return h [B, H, W, C] enlarged to [B, 2H, 2W, C] by repeating pixels."""
    return repeat(h, "b h w c -> b (h p) (w q) c", p=2, q=2)


class GroupNorm(nn.Module):
    """Group norm, optionally with FiLM: norm(h) (1 + scale) + shift for scale and shift from emb [B, E].

    Statistics in float32. Means of the channels are computed first and then averaged over groups, and the rest is one
    multiply-add per pixel: several times faster on CPUs than a reduction over the pixels and channels of a group.

    Attributes:
      dtype: of the output.
      style: its `groups` and `embedding_activation` are used.
      epsilon: added to the variance.
    """

    dtype: Dtype = jnp.float32
    style: Style = OWN_STYLE
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array | None = None) -> jax.Array:
        """Return the norm of h [B, H, W, C], with FiLM if emb [B, E] is given."""
        channels = h.shape[-1]
        groups = self.style.groups or math.gcd(32, max(1, channels // 4), channels)
        x = h.astype(jnp.float32)
        mean, mean_square = (
            repeat(reduce(m, "b (g c) -> b g", "mean", g=groups), "b g -> b (g c)", c=channels // groups)
            for m in (jnp.mean(x, axis=(1, 2)), jnp.mean(x * x, axis=(1, 2)))
        )  # [B, C]
        gain = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", zeros, (channels,))
        factor = jax.lax.rsqrt(jnp.maximum(mean_square - mean**2, 0) + self.epsilon) * gain[None, :]
        offset = bias[None, :] - mean * factor
        if emb is not None:
            activation = self.style.embedding_activation or (lambda emb: emb)
            film = nn.Dense(2 * channels, dtype=self.dtype, name="film")(activation(emb)).astype(jnp.float32)
            scale, shift = jnp.split(film, 2, axis=-1)
            factor, offset = factor * (1 + scale), offset * (1 + scale) + shift
        return (x * factor[:, None, None, :] + offset[:, None, None, :]).astype(self.dtype)
