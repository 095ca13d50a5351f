"""Embeddings of what a network is conditioned on: noise level, text and, in super-resolution, the aug level."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax import arrays
from imagen_jax.checks import Verbatim, require
from imagen_jax.models.attention import AttentionPool
from imagen_jax.models.layers import Activation, Dtype, cached
from imagen_jax.structs import Cond, TextCond


def sinusoid(value: jax.Array, width: int, max_period: float = 10_000.0) -> jax.Array:
    """Return sines and cosines of value [B] at geometrically spaced frequencies, [B, width] float32.

    Args:
      value: [B].
      width: an even number.
      max_period: the frequencies fall from 1 to nearly 1 / max_period (Vaswani et al. 2017, section 3.5).
    """
    half = width // 2
    frequency = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = value.astype(jnp.float32)[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def check_call(z_t: Any, logsnr_t: Any, cond: Any, stride: int) -> None:
    """Raise a ValueError for inputs that a network of total stride `stride` cannot be called with."""
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
    """Embedding of a log-SNR: a multilayer perceptron of sinusoids.

    The sinusoids, of width features / 4, are of 1000 t for the time t at which a cosine schedule has this log-SNR. This
    spreads the levels of every schedule over [0, 1000].

    Attributes:
      features: of the embedding.
      dtype: of the computation.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, logsnr: jax.Array) -> jax.Array:
        """Return [B, features] of logsnr [B]."""
        time = 2000 / jnp.pi * jnp.arctan(jnp.exp(-logsnr.astype(jnp.float32) / 2))
        h = nn.Dense(self.features, dtype=self.dtype, name="hidden")(sinusoid(time, self.features // 4))
        return nn.Dense(self.features, dtype=self.dtype, name="out")(nn.silu(h))


class StepEmbedding(nn.Module):
    """Embedding of the step of a discretely trained network: a multilayer perceptron of cosines and sines.

    Attributes:
      features: of the embedding.
      width: of the cosines and sines.
      num_steps: of the process, T.
      activation: of the perceptron.
      dtype: of the computation.
    """

    features: int
    width: int
    num_steps: int = 1000
    activation: Activation = nn.silu
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, time: jax.Array) -> jax.Array:
        """Return [B, features] of time [B] in [0, 1], of which i is the step (i + 1) / T."""
        step = self.num_steps * time.astype(jnp.float32) - 1
        # The network was trained on whole steps, and float32 rounds times to thousandths of one.
        nearest = jnp.round(step)
        step = jnp.maximum(jnp.where(jnp.abs(step - nearest) < 0.01, nearest, step), 0)
        code = jnp.roll(sinusoid(step, self.width), self.width // 2, axis=-1)
        h = nn.Dense(self.features, dtype=self.dtype, name="hidden")(code)
        return nn.Dense(self.features, dtype=self.dtype, name="out")(self.activation(h))


class Conditioning(nn.Module):
    """Embeddings of the noise level and of the condition.

    A norm and a projection, shared by all layers that read the text, bring its tokens to the width of the network, as
    in DeepFloyd IF. They receive gradients from every attention layer, and the cost of those does not depend on the
    width of the language model.

    Attributes:
      features: width of the embedding and of the text tokens.
      dtype: of the computation.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, logsnr_t: jax.Array, cond: Cond) -> tuple[jax.Array, TextCond]:
        """Return (emb, text).

        emb [B, features] is the sum of the embeddings of logsnr_t [B], the pooled text and aug_logsnr; text has
        embeddings [B, L, features].
        """

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
