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


# What a field of a config may be: its type -> (description, test).
_VALID = {
    int: ("a positive integer below 2^31", lambda value: type(value) is int and 1 <= value < 2**31),
    float: ("a number from 0 to below 1", lambda value: type(value) in (int, float) and 0 <= value < 1),
    str: ("a name", lambda value: isinstance(value, str)),
    bool: ("true or false", lambda value: isinstance(value, bool)),
}


def sizes(cls: type, family: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the dataclass `cls` that a config.json holds.

    Raises:
      ValueError: a field without a default is missing, or one has another type or range than it must.
    """
    found = {}
    for field in dataclasses.fields(cls):
        if field.name not in config:
            if field.default is dataclasses.MISSING:
                raise ValueError(
                    f"{family} config.json must hold {field.name}, which is missing; get a complete copy of the model."
                )
            continue
        value = found[field.name] = config[field.name]
        kind, is_valid = _VALID[field.type]
        if not is_valid(value):
            raise ValueError(
                f"{family} config.json: {field.name} must be {kind}; got {value!r:.80}: get a complete copy."
            )
    return found


def section(family: str, config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The object under `key` of a config.json, {} if it is null or missing; ValueError if it is none."""
    found = config.get(key)
    if found is not None and not isinstance(found, dict):
        raise ValueError(
            f"{family} config.json: {key} must be an object; got {found!r:.80}: get a complete copy."
        )
    return found or {}


def check_heads(hidden_size: int, num_heads: int) -> None:
    """Raises ValueError unless the heads share the width evenly."""
    if hidden_size % num_heads:
        raise ValueError(
            f"hidden_size must be a multiple of num_attention_heads; got {hidden_size} and {num_heads}: "
            "fix the model's config.json."
        )


# --- networks -----------------------------------------------------------------------------------


def check_length(family: str, input_ids: jax.Array, limit: int) -> None:
    """Raises ValueError if input_ids [B, L] have more positions than the model knows."""
    if input_ids.shape[1] > limit:
        raise ValueError(
            f"{family}: input_ids must have at most {limit} tokens, the reach of its position embeddings; "
            f"got {input_ids.shape[1]}: cut the captions."
        )


def padding_bias(attention_mask: jax.Array) -> jax.Array:
    """attention_mask [B, L], nonzero at tokens -> [B, 1, 1, L] float32 to add to the logits."""
    return jnp.where(attention_mask[:, None, None, :] != 0, 0.0, MASKED).astype(jnp.float32)


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, num_heads: int, scale: float
) -> jax.Array:
    """Multi-head attention of [B L, N K] projections -> [B L, N K]; softmax in float32.

    `bias`, [B, 1 or N, 1 or L, L], is added to the logits; `scale` multiplies the query.
    """
    dtype = query.dtype
    batch, length = bias.shape[0], bias.shape[-1]
    # Heads before tokens, and the division of the softmax after the sum over keys: several times faster on
    # CPUs than the usual order, and the same on accelerators.
    split = lambda x: x.reshape(batch, length, num_heads, -1).swapaxes(1, 2)  # [B, N, L, K]
    exact = precision(dtype)
    logits = jnp.einsum(
        "bnlk,bnmk->bnlm",
        split(query) * scale,
        split(key),
        precision=exact,
        preferred_element_type=jnp.float32,
    )
    logits = logits + bias
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))  # in [0, 1], one of them 1
    attended = jnp.einsum(
        "bnlm,bnmk->bnlk",
        weights.astype(dtype),
        split(value),
        precision=exact,
        preferred_element_type=jnp.float32,
    )
    attended = (attended / weights.sum(-1, keepdims=True)).astype(dtype)
    return attended.swapaxes(1, 2).reshape(query.shape)


def precision(dtype: Any) -> jax.lax.Precision | None:
    """Return the precision of products: the highest for float32, whose default is bf16 on a TPU and TF32 on a GPU."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def dense(module: nn.Module, features: int, name: str, use_bias: bool = True) -> nn.Module:
    """A dense layer in the dtypes of `module`."""
    if module.param_dtype == jnp.int8:
        return _Int8Dense(features, use_bias, module.dtype, name=name)
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=module.dtype,
        param_dtype=module.param_dtype,
        precision=precision(module.dtype),
        name=name,
    )


def embedding(module: nn.Module, num: int, features: int, name: str) -> nn.Module:
    """A table of `num` vectors in the dtypes of `module`."""
    if module.param_dtype == jnp.int8:
        return _Int8Embed(num, features, module.dtype, name=name)
    return nn.Embed(num, features, module.dtype, module.param_dtype, name=name)


def layer_norm(module: nn.Module, epsilon: float, name: str) -> nn.LayerNorm:
    """A LayerNorm in the dtypes of `module`, its statistics in float32."""
    # The two-pass variance: E[x^2] - E[x]^2 loses digits where a channel is large.
    return nn.LayerNorm(
        epsilon, dtype=module.dtype, param_dtype=vector_dtype(module), use_fast_variance=False, name=name
    )


def vector_dtype(module: nn.Module) -> Any:
    """The dtype of scales, biases and other small parameters: theirs need not be int8."""
    return jnp.float32 if module.param_dtype == jnp.int8 else module.param_dtype


# --- int8 ---------------------------------------------------------------------------------------


def quantize(matrix: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """float [I, J] -> int8 [I, J] and a float32 scale for each row or column, whose values are along `axis`."""
    matrix = matrix.astype(jnp.float32)
    scale = jnp.max(jnp.abs(matrix), axis=axis) / 127
    # A row of zeros has no scale; any will do.
    steps = jnp.round(matrix / jnp.expand_dims(jnp.where(scale > 0, scale, 1), axis))
    return steps.astype(jnp.int8), scale


class _Int8Dense(nn.Module):
    """A dense layer whose kernel is int8 with a scale for each output; products in `dtype`."""

    features: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros_init()
        kernel = self.param("kernel", zeros, (x.shape[-1], self.features), jnp.int8)
        scale = self.param("scale", zeros, (self.features,), jnp.float32)
        y = jnp.dot(
            x.astype(self.dtype),
            kernel.astype(self.dtype),
            precision=precision(self.dtype),
            preferred_element_type=jnp.float32,
        )
        y = y * scale[None]
        if self.use_bias:
            y = y + self.param("bias", zeros, (self.features,), jnp.float32)[None]
        return y.astype(self.dtype)


class _Int8Embed(nn.Module):
    """A table of int8 vectors with a scale for each."""

    num: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, index: jax.Array) -> jax.Array:
        zeros = nn.initializers.zeros_init()
        table = self.param("embedding", zeros, (self.num, self.features), jnp.int8)
        scale = self.param("scale", zeros, (self.num,), jnp.float32)
        return (table[index].astype(jnp.float32) * scale[index][..., None]).astype(self.dtype)


# --- tensor tables ------------------------------------------------------------------------------


def dense_rows(name: str, path: tuple[str, ...]) -> Iterator[Row]:
    """A dense layer with bias; torch keeps [out, in], Linen [in, out]."""
    yield f"{name}.weight", (*path, "kernel"), True
    yield f"{name}.bias", (*path, "bias"), False


def norm_rows(name: str, path: tuple[str, ...]) -> Iterator[Row]:
    """A LayerNorm."""
    yield f"{name}.weight", (*path, "scale"), False
    yield f"{name}.bias", (*path, "bias"), False
