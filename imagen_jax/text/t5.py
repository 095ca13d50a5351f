"""T5 text encoder (Raffel et al. 2020, arXiv:1910.10683) in Linen: T5, T5 v1.1, FLAN-T5, mT5, UMT5, ByT5.

Imagen's language model: the encoder half alone. Pre-norm blocks with RMS norms and no biases;
attention is not scaled and knows positions by a learned bias for each bucket of distances, which
all layers share (in UMT5 each has its own). `tensor_table` says where each tensor of a Hugging Face
checkpoint goes.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.text import layers

# feed_forward_proj of config.json -> (activation, gated). "gated-gelu" means the tanh form there.
_FEED_FORWARD = {
    "relu": (nn.relu, False),
    "gated-gelu": (nn.gelu, True),
    "gated-silu": (nn.silu, True),
}


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 encoder; the names are those of a Hugging Face config.json."""

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    bias_per_layer: bool = False  # UMT5
    # Whether lm_head.weight is the token table: no part of the encoder, so not of its identity.
    tie_word_embeddings: bool = dataclasses.field(default=True, repr=False, compare=False)

    def __post_init__(self):
        if self.feed_forward_proj not in _FEED_FORWARD:
            raise ValueError(
                f"T5 config.json: feed_forward_proj must be one of {', '.join(_FEED_FORWARD)}; got "
                f"{self.feed_forward_proj!r:.80}: this encoder computes nothing else, so choose another text encoder."
            )
        if self.relative_attention_num_buckets < 4 or self.relative_attention_num_buckets % 2:
            raise ValueError(
                "T5 config.json: relative_attention_num_buckets must be even and at least 4; got "
                f"{self.relative_attention_num_buckets}: get a complete copy of the model."
            )
        if self.relative_attention_max_distance <= self.relative_attention_num_buckets // 4:
            raise ValueError(
                "T5 config.json: relative_attention_max_distance must be more than a quarter of the buckets, "
                f"{self.relative_attention_num_buckets // 4}; got {self.relative_attention_max_distance}: get a "
                "complete copy of the model."
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "T5Config":
        """Return the config of a parsed Hugging Face config.json.

        Raises:
          ValueError: a size is missing, or the model does something this encoder does not.
        """
        # transformers 5 writes true for all, and what 4 wrote there as scale_decoder_outputs.
        is_tied = [config.get(key) for key in ("tie_word_embeddings", "scale_decoder_outputs")]
        others = {
            "tie_word_embeddings": False not in is_tied,
            "bias_per_layer": config.get("model_type") == "umt5",
        }
        known = layers.sizes(cls, "T5", {key: value for key, value in config.items() if key not in others})
        return cls(**known | others)

    @property
    def width(self) -> int:
        """D, the width of the hidden states."""
        return self.d_model

    @property
    def max_length(self) -> None:
        """Relative positions have no end."""
        return None

    @property
    def axes(self) -> dict[str, int]:
        """Sizes that are axes of its tensors, or divide them."""
        names = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "relative_attention_num_buckets")
        return {name: getattr(self, name) for name in names}


class T5Encoder(nn.Module):
    """Token ids to last hidden states.

    `dtype` is what the matrix products compute in; softmax, norms and the residual sum, which grows
    far beyond what bf16 resolves, are fp32 always.
    """

    config: T5Config
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """input_ids [B, L] int32 and attention_mask [B, L] (nonzero at tokens) -> [B, L, D]."""
        config = self.config
        # [B L, D] from here on: XLA fuses what follows a product better behind two axes than behind three.
        x = layers.embedding(self, config.vocab_size, config.d_model, "shared")(input_ids.reshape(-1))
        x = x.astype(jnp.float32)
        mask = layers.padding_bias(attention_mask)
        bias = mask
        for i in range(config.num_layers):
            if i == 0 or config.bias_per_layer:
                name = f"layer_{i}_position_bias"
                table = _PositionBias(config, layers.vector_dtype(self), name=name)
                bias = mask + table(input_ids.shape[1])
            x = _Layer(config, self.dtype, self.param_dtype, name=f"layer_{i}")(x, bias)
        x = _RMSNorm(config.layer_norm_epsilon, layers.vector_dtype(self), name="norm")(x)
        return x.astype(self.dtype).reshape(*input_ids.shape, -1)


class _PositionBias(nn.Module):
    """[1, N, L, L]: what each head adds for the distance of a key from a query."""

    config: T5Config
    param_dtype: Any

    @nn.compact
    def __call__(self, length: int) -> jax.Array:
        config = self.config
        shape = (config.relative_attention_num_buckets, config.num_heads)
        table = self.param("embedding", nn.initializers.normal(1.0), shape, self.param_dtype)
        position = jnp.arange(length)
        buckets = relative_position_bucket(
            position[None, :] - position[:, None],
            config.relative_attention_num_buckets,
            config.relative_attention_max_distance,
        )
        return jnp.transpose(table[buckets], (2, 0, 1))[None].astype(jnp.float32)


def relative_position_bucket(distance: jax.Array, num_buckets: int, max_distance: int) -> jax.Array:
    """Return the bucket of key position minus query position: exact when near, logarithmic up to `max_distance`.

    Half of the buckets are for keys behind the query; all distances from `max_distance` on share one.
    """
    half = num_buckets // 2
    exact = half // 2
    size = jnp.abs(distance)
    scale = (half - exact) / math.log(max_distance / exact)
    far = exact + (jnp.log(jnp.maximum(size, exact).astype(jnp.float32) / exact) * scale).astype(jnp.int32)
    return jnp.where(distance > 0, half, 0) + jnp.where(size < exact, size, jnp.minimum(far, half - 1))


class _RMSNorm(nn.Module):
    """x / rms(x) * scale in fp32: no mean, no bias."""

    epsilon: float
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), self.param_dtype)
        mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(mean_square + self.epsilon) * scale.astype(jnp.float32)[None]


class _Layer(nn.Module):
    """Self-attention and feed-forward, each behind a norm (pre-norm) and added to the residual."""

    config: T5Config
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        x = x + self._attend(self._norm("attention_norm")(x).astype(self.dtype), bias).astype(jnp.float32)
        return x + self._feed_forward(self._norm("mlp_norm")(x).astype(self.dtype)).astype(jnp.float32)

    def _attend(self, h: jax.Array, bias: jax.Array) -> jax.Array:
        width, heads = self.config.num_heads * self.config.d_kv, self.config.num_heads
        query, key, value = (self._dense(width, name)(h) for name in ("query", "key", "value"))
        out = layers.attend(query, key, value, bias, heads, scale=1.0)
        return self._dense(self.config.d_model, "attention_out")(out)

    def _feed_forward(self, h: jax.Array) -> jax.Array:
        activation, gated = _FEED_FORWARD[self.config.feed_forward_proj]
        hidden = activation(self._dense(self.config.d_ff, "mlp_in")(h))
        if gated:
            hidden = hidden * self._dense(self.config.d_ff, "mlp_gate")(h)
        return self._dense(self.config.d_model, "mlp_out")(hidden)

    def _dense(self, features: int, name: str) -> nn.Dense:
        return layers.dense(self, features, name, use_bias=False)

    def _norm(self, name: str) -> _RMSNorm:
        return _RMSNorm(self.config.layer_norm_epsilon, layers.vector_dtype(self), name=name)


def tensor_table(config: T5Config) -> Iterator[layers.Row]:
    """Yields (name in the checkpoint, path of the Linen parameter, is it transposed)."""
    gated = _FEED_FORWARD[config.feed_forward_proj][1]
    hidden = {"wi_0": "mlp_in", "wi_1": "mlp_gate"} if gated else {"wi": "mlp_in"}
    yield "shared.weight", ("shared", "embedding"), False
    for i in range(config.num_layers):
        block, layer = f"encoder.block.{i}", f"layer_{i}"
        attention, mlp = f"{block}.layer.0", f"{block}.layer.1"
        for theirs, ours in {"q": "query", "k": "key", "v": "value", "o": "attention_out"}.items():
            yield f"{attention}.SelfAttention.{theirs}.weight", (layer, ours, "kernel"), True
        if i == 0 or config.bias_per_layer:
            name = f"{attention}.SelfAttention.relative_attention_bias.weight"
            yield name, (f"layer_{i}_position_bias", "embedding"), False
        for theirs, ours in (hidden | {"wo": "mlp_out"}).items():
            yield f"{mlp}.DenseReluDense.{theirs}.weight", (layer, ours, "kernel"), True
        yield f"{attention}.layer_norm.weight", (layer, "attention_norm", "scale"), False
        yield f"{mlp}.layer_norm.weight", (layer, "mlp_norm", "scale"), False
    yield "encoder.final_layer_norm.weight", ("norm", "scale"), False


def canonical_name(name: str) -> str | None:
    """Return the name that `tensor_table` has for a checkpoint's tensor; None for one that is not needed.

    Whole models bring a decoder and a head. The token table may be there under its encoder's name.
    """
    if name.startswith(("decoder.", "lm_head.")):
        return None
    return "shared.weight" if name == "encoder.embed_tokens.weight" else name


def tied_names(config: T5Config) -> dict[str, tuple[str, ...]]:
    """Return other names of a table's tensors, by name, for checkpoints that store a shared tensor once.

    Encoder and decoder always share the token table; the head has it only where it is tied, not in v1.1.
    """
    heads = ("lm_head.weight",) if config.tie_word_embeddings else ()
    return {"shared.weight": ("decoder.embed_tokens.weight", *heads)}
