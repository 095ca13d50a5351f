"""What the language models share: exact products in float32, attention, norms."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Added to the logits of padded keys. Far below any real logit, so that exp() in the softmax is
# exactly zero, and far above the fp32 minimum, so that adding it never overflows.
MASKED = -1e30


def padding_bias(attention_mask: jax.Array) -> jax.Array:
    """attention_mask [B, L], nonzero at tokens -> [B, 1, 1, L] float32 to add to the logits."""
    return jnp.where(attention_mask[:, None, None, :] != 0, 0.0, MASKED).astype(jnp.float32)


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, num_heads: int, scale: float
) -> jax.Array:
    """Multi-head attention of [B, L, N K] projections -> [B, L, N K]; softmax in float32.

    `bias` broadcasts against the logits [B, N, L, L]; `scale` multiplies the query.
    """
    dtype = query.dtype
    split = lambda x: x.reshape(*x.shape[:2], num_heads, -1)  # [B, L, N, K]
    logits = jnp.einsum(
        "blnk,bmnk->bnlm",
        split(query) * scale,
        split(key),
        precision=precision(dtype),
        preferred_element_type=jnp.float32,
    )
    weights = jax.nn.softmax(logits + bias, axis=-1).astype(dtype)
    return jnp.einsum("bnlm,bmnk->blnk", weights, split(value), precision=precision(dtype)).reshape(
        query.shape
    )


def precision(dtype: Any) -> jax.lax.Precision | None:
    """A person who asks for float32 means it: the default is bf16 products on a TPU, TF32 on a GPU."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def dense(module: nn.Module, features: int, name: str, use_bias: bool = True) -> nn.Dense:
    """A dense layer in the dtypes of `module`."""
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        precision=precision(module.dtype),
        name=name,
    )


def layer_norm(module: nn.Module, epsilon: float, name: str) -> nn.LayerNorm:
    """A LayerNorm in the dtypes of `module`, its statistics in float32."""
    # The two-pass variance: E[x^2] - E[x]^2 loses digits where a channel is large.
    return nn.LayerNorm(
        epsilon, dtype=module.dtype, param_dtype=module.param_dtype, use_fast_variance=False, name=name
    )
