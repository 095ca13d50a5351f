"""What the language models share: reading config.json, attention and norms, rows of tensor tables."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# Added to the logits of padded keys. Far below any real logit, so that exp() in the softmax is
# exactly zero, and far above the fp32 minimum, so that adding it never overflows.
MASKED = -1e30


Row = tuple[str, tuple[str, ...], bool]  # name in the checkpoint, path of the parameter, transposed?


# --- config.json --------------------------------------------------------------------------------


def sizes(cls: type, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the dataclass `cls` that a config.json holds; ValueError if a needed one is missing."""
    fields = dataclasses.fields(cls)
    for field in fields:
        if field.default is dataclasses.MISSING and field.name not in config:
            raise ValueError(
                f"{family} config.json must hold {field.name}, which is missing; get a complete copy of the model."
            )
    return {field.name: config[field.name] for field in fields if field.name in config}


def check_heads(hidden_size: int, num_heads: int) -> None:
    """Raises ValueError unless the heads share the width evenly."""
    if hidden_size % num_heads:
        raise ValueError(
            f"hidden_size must be a multiple of num_attention_heads, got {hidden_size} and {num_heads}; "
            "fix the model's config.json."
        )


# --- networks -----------------------------------------------------------------------------------


def check_length(family: str, input_ids: jax.Array, limit: int) -> None:
    """Raises ValueError if input_ids [B, L] have more positions than the model knows."""
    if input_ids.shape[1] > limit:
        raise ValueError(
            f"{family}: input_ids must have at most {limit} tokens, the reach of its position embeddings, "
            f"got {input_ids.shape[1]}; cut the captions."
        )


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


# --- tensor tables ------------------------------------------------------------------------------


def dense_rows(name: str, path: tuple[str, ...]) -> Iterator[Row]:
    """A dense layer with bias; torch keeps [out, in], Linen [in, out]."""
    yield f"{name}.weight", (*path, "kernel"), True
    yield f"{name}.bias", (*path, "bias"), False


def norm_rows(name: str, path: tuple[str, ...]) -> Iterator[Row]:
    """A LayerNorm."""
    yield f"{name}.weight", (*path, "scale"), False
    yield f"{name}.bias", (*path, "bias"), False
