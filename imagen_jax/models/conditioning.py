"""What a network is told: the noise level, the text and, in super-resolution, the aug level."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax import arrays
from imagen_jax.checks import Verbatim, require
from imagen_jax.models.attention import AttentionPool
from imagen_jax.models.layers import Dtype, cached
from imagen_jax.structs import Cond, TextCond


def sinusoid(value: jax.Array, width: int, max_period: float = 10_000.0) -> jax.Array:
    """[B] -> [B, width] sines and cosines of geometrically spaced frequencies, float32."""
    half = width // 2
    frequency = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = value.astype(jnp.float32)[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def check_call(z_t: Any, logsnr_t: Any, cond: Any, stride: int) -> None:
    """Raises a ValueError for whatever a network of this total stride cannot be called with."""
    shape = tuple(arrays.array("z_t", z_t, ndim=4).shape)
    is_right = 0 not in shape and shape[1] % stride == shape[2] % stride == 0
    rule = f"be [B, H, W, C] with H and W multiples of {stride}, the network's total stride"
    require(is_right, "z_t", rule, Verbatim(shape))
    rows = arrays.array("logsnr_t", logsnr_t, ndim=1).shape[0]
    require(rows == shape[0], "logsnr_t", f"have one entry for each row of z_t, {shape[0]}", rows)
    require(isinstance(cond, Cond), "cond", "be a Cond", cond)
    rows = len(cond.check().text.mask)
    require(rows == shape[0], "cond", f"have one row for each row of z_t, {shape[0]}", rows)
    for name in ("low_res_noised", "control"):
        value = getattr(cond, name)
        if value is not None:
            got = tuple(value.shape[:3])
            require(got == shape[:3], f"cond.{name}", f"have the size of z_t, {list(shape[:3])}", Verbatim(got))


class LevelEmbedding(nn.Module):
    """logsnr [B] -> [B, features].

    The sinusoids, a quarter as wide, see 1000 times the time at which a cosine schedule has this logsnr, which spreads
    every schedule's levels evenly over [0, 1000].
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, logsnr: jax.Array) -> jax.Array:
        time = 2000 / jnp.pi * jnp.arctan(jnp.exp(-logsnr.astype(jnp.float32) / 2))
        h = nn.Dense(self.features, dtype=self.dtype, name="hidden")(sinusoid(time, self.features // 4))
        return nn.Dense(self.features, dtype=self.dtype, name="out")(nn.silu(h))


class Conditioning(nn.Module):
    """(emb [B, features], text tokens [B, L, features]).

    A norm and a projection, shared by all that read the text, bring its tokens to the network's own
    width (as DeepFloyd IF does): every attention layer teaches them, and a wide language model costs
    each layer nothing. emb adds up the embeddings of logsnr_t, the pooled text and aug_logsnr.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, logsnr_t: jax.Array, cond: Cond) -> tuple[jax.Array, TextCond]:

        def project() -> jax.Array:
            tokens = nn.LayerNorm(dtype=self.dtype, name="text_norm")(cond.text.embeddings)
            return nn.Dense(self.features, dtype=self.dtype, name="text")(tokens)

        def of_condition() -> jax.Array:
            emb = AttentionPool(self.features, dtype=self.dtype, name="text_pool")(text)
            if cond.aug_logsnr is not None:
                emb += LevelEmbedding(self.features, self.dtype, name="aug_logsnr")(cond.aug_logsnr)
            return emb

        text = cond.text.replace(embeddings=cached(self, "text", project))
        emb = LevelEmbedding(self.features, self.dtype, name="logsnr")(logsnr_t)
        return emb + cached(self, "condition", of_condition), text


def conditioning_images(cond: Cond) -> jax.Array | None:
    """Return the images that are concatenated to z_t, [B, H, W, C'], low_res_noised first; None if there are none."""
    images = [image for image in (cond.low_res_noised, cond.control) if image is not None]
    return jnp.concatenate(images, axis=-1) if images else None
