"""Attention from pixels to pixels and text. Softmax in float32; padded text is always masked."""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from imagen_jax.models.layers import OWN_STYLE, Dtype, GroupNorm, Style, cached, zeros
from imagen_jax.structs import TextCond


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the attention of each query to the keys that `mask` has, [B, Q, N, K] in the type of the values.

    The same as `jax.nn.dot_product_attention`, in an order that is faster on CPUs: the weights are not transposed for
    the second product, and its result, which is smaller, is divided by their sum instead of the weights.

    Args:
      query: [B, Q, N, K].
      key, value: [B, L, N, K].
      mask: [B, L] bool, true somewhere in each row.
    """
    product = partial(jnp.matmul, preferred_element_type=jnp.float32)
    query, value = (rearrange(a, "b l n k -> b n l k") for a in (query, value))
    logits = query.shape[-1] ** -0.5 * product(query, rearrange(key, "b l n k -> b n k l")) + _bias(mask)
    weights = jnp.exp(logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True)))
    out = product(weights.astype(value.dtype), value) / jnp.sum(weights, axis=-1, keepdims=True)
    return rearrange(out, "b n q k -> b q n k").astype(value.dtype)


def _bias(mask: jax.Array) -> jax.Array:
    """Return [B, 1, 1, L], what added to logits makes weights of zero where `mask` [B, L] is false."""
    return jnp.where(mask, 0, -1e30).astype(jnp.float32)[:, None, None, :]


class TextAttention(nn.Module):
    """Attention over [text, pixels] in one softmax, or over the text alone (paper section 2.4, F.1-F.3).

    Residual, with a zero-initialised output projection. The text tokens have a norm of their own.

    Attributes:
      num_heads, head_dim: N and K.
      over_pixels: whether pixels are keys too; False for the 256 -> 1024 stage.
      dtype: of the computation.
      style: of the norms.
    """

    num_heads: int
    head_dim: int
    over_pixels: bool = True
    dtype: Dtype = jnp.float32
    style: Style = OWN_STYLE

    @nn.compact
    def __call__(self, x: jax.Array, text: TextCond) -> jax.Array:
        """Return x [B, H, W, C] plus its attention output."""
        width = self.num_heads * self.head_dim
        h = rearrange(GroupNorm(self.dtype, self.style, name="norm")(x), "b h w c -> b (h w) c")
        query = self._heads(nn.Dense(width, dtype=self.dtype, name="query")(h), 1)[0]

        def of_text() -> list[jax.Array]:
            tokens = self._normed(text.embeddings)
            return self._heads(nn.Dense(2 * width, dtype=self.dtype, name="text_key_value")(tokens), 2)

        key, value = cached(self, "text_key_value", of_text)
        mask = text.mask  # [B, L]
        if self.over_pixels:
            own_key, own_value = self._heads(nn.Dense(2 * width, dtype=self.dtype, name="key_value")(h), 2)
            key = jnp.concatenate([key, own_key], axis=1)  # [B, L + HW, N, K]
            value = jnp.concatenate([value, own_value], axis=1)
            mask = jnp.pad(mask, ((0, 0), (0, h.shape[1])), constant_values=True)
        out = rearrange(attend(query, key, value, mask), "b l n k -> b l (n k)")
        out = nn.Dense(x.shape[-1], kernel_init=zeros, dtype=self.dtype, name="out")(out)
        return x + out.reshape(x.shape)

    def _normed(self, tokens: jax.Array) -> jax.Array:
        """Return the norm of tokens [B, L, D]."""
        if self.style.text_groups is None:
            return nn.LayerNorm(self.style.epsilon, self.dtype, name="text_norm")(tokens)
        style = dataclasses.replace(self.style, groups=self.style.text_groups)
        return GroupNorm(self.dtype, style, name="text_norm")(tokens[:, :, None])[:, :, 0]

    def _heads(self, h: jax.Array, parts: int) -> list[jax.Array]:
        """Split [B, L, parts N K] into `parts` arrays [B, L, N, K]."""
        return list(rearrange(h, "b l (p n k) -> p b l n k", p=parts, n=self.num_heads))


class AttentionPool(nn.Module):
    """Attention pooling of the text with the mean token as query, after a LayerNorm (paper section 4.4).

    Keys and values are those of the mean and of all tokens.

    Attributes:
      features: of the pooled vector.
      head_dim: K.
      dtype: of the computation.
      num_heads: N; None: features / K.
      has_position: whether a learned vector is added to the mean token.
      style: of the norm.
    """

    features: int
    head_dim: int = 64
    dtype: Dtype = jnp.float32
    num_heads: int | None = None
    has_position: bool = False
    style: Style = OWN_STYLE

    @nn.compact
    def __call__(self, text: TextCond) -> jax.Array:
        """Return [B, features] of a text with embeddings [B, L, D]."""
        num_heads = self.num_heads or max(1, self.features // self.head_dim)
        tokens = nn.LayerNorm(self.style.epsilon, self.dtype, name="norm")(text.embeddings)
        weight = (text.mask / text.mask.sum(axis=1, keepdims=True))[..., None].astype(tokens.dtype)
        mean = jnp.sum(weight * tokens, axis=1, keepdims=True)  # [B, 1, D]
        if self.has_position:
            position = self.param("position", nn.initializers.normal(0.02), (1, mean.shape[-1]))
            mean += position.astype(mean.dtype)[None]
        tokens = jnp.concatenate([mean, tokens], axis=1)
        mask = jnp.pad(text.mask, ((0, 0), (1, 0)), constant_values=True)

        width = num_heads * self.head_dim
        query = nn.Dense(width, dtype=self.dtype, name="query")(mean[:, 0])
        (key, _), (value, bias) = (
            Projection(width, self.dtype, name=name)(tokens.shape[-1]) for name in ("key", "value")
        )
        split = partial(rearrange, pattern="... (n k) -> ... n k", n=num_heads)
        # There is one query, so keys and values of all tokens need not be computed: the query goes through the kernel
        # of the keys, and the mean of the tokens through that of the values. The bias of the keys adds the same number
        # to all logits of a head, which softmax ignores.
        asked = jnp.einsum("bnk,dnk->bnd", split(query), split(key))
        logits = jnp.einsum("bnd,bld->bnl", asked, tokens, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(self.head_dim**-0.5 * logits + _bias(mask)[:, 0]).astype(self.dtype)
        out = jnp.einsum("bnd,dnk->bnk", jnp.einsum("bnl,bld->bnd", weights, tokens), split(value)) + split(bias)[None]
        return nn.Dense(self.features, dtype=self.dtype, name="out")(rearrange(out, "b n k -> b (n k)"))


class Projection(nn.Module):
    """Kernel and bias of an `nn.Dense`, for products in another order.

    Attributes:
      features: of the output.
      dtype: of the computation.
    """

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, jax.Array]:
        """Return a kernel [width, features] and a bias [features]."""
        kernel = self.param("kernel", nn.linear.default_kernel_init, (width, self.features))
        return kernel.astype(self.dtype), self.param("bias", zeros, (self.features,)).astype(self.dtype)
