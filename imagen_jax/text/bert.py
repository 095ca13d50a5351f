"""BERT text encoder (Devlin et al. 2018, arXiv:1810.04805) in Linen.

The post-LayerNorm encoder of BERT base, BERT large and the MiniLM sentence encoders, without
pooler and heads: it returns the last hidden states. `tensor_table` says where each tensor of a
Hugging Face checkpoint goes.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.layers import gelu
from imagen_jax.text import layers

# What config.json may say, as (key, what this encoder does). An absent key means the same.
_FIXED = (
    ("hidden_act", "gelu"),
    ("position_embedding_type", "absolute"),
    ("is_decoder", False),
    ("add_cross_attention", False),
)


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Sizes of a BERT encoder; the names are those of a Hugging Face config.json."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    # Whether the head for masked words has the token table: no part of the encoder, so not of its identity.
    tie_word_embeddings: bool = dataclasses.field(default=True, repr=False, compare=False)

    def __post_init__(self):
        layers.check_heads(self.hidden_size, self.num_attention_heads)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "BertConfig":
        """Return the config of a parsed Hugging Face config.json.

        Raises:
          ValueError: a size is missing, or the model does something this encoder does not.
        """
        for key, supported in _FIXED:
            if config.get(key, supported) != supported:
                raise ValueError(
                    f"BERT config.json: {key} must be {supported!r}; got {config[key]!r:.80}: "
                    "this encoder computes nothing else, so choose another text encoder."
                )
        return cls(**layers.sizes(cls, "BERT", config))

    @property
    def width(self) -> int:
        """D, the width of the hidden states."""
        return self.hidden_size

    @property
    def max_length(self) -> int:
        """The longest L the position embeddings reach."""
        return self.max_position_embeddings

    @property
    def axes(self) -> dict[str, int]:
        """Sizes that are axes of its tensors, or divide them."""
        names = (
            "vocab_size",
            "hidden_size",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
        )
        return {name: getattr(self, name) for name in (*names, "type_vocab_size")}


class BertEncoder(nn.Module):
    """Token ids to last hidden states.

    `dtype` is what the matrix products compute in; softmax and norm statistics are fp32 always.
    """

    config: BertConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """input_ids [B, L] int32 and attention_mask [B, L] (nonzero at tokens) -> [B, L, D]."""
        layers.check_length("BERT", input_ids, self.config.max_length)
        bias = layers.padding_bias(attention_mask)
        x = _Embeddings(self.config, self.dtype, self.param_dtype, name="embeddings")(input_ids)
        for i in range(self.config.num_hidden_layers):
            x = _Layer(self.config, self.dtype, self.param_dtype, name=f"layer_{i}")(x, bias)
        return x.reshape(*input_ids.shape, -1)


class _Embeddings(nn.Module):
    """Token + position + token type 0 embeddings, normalised: [B, L] -> [B L, D]."""

    config: BertConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, input_ids: jax.Array) -> jax.Array:
        def table(num: int, name: str) -> nn.Module:
            return layers.embedding(self, num, self.config.width, name)

        batch, length = input_ids.shape
        # [B L, D] from here on: XLA fuses what follows a product better behind two axes than behind three.
        x = table(self.config.vocab_size, "word")(input_ids.reshape(-1))
        x = x + table(self.config.type_vocab_size, "token_type")(jnp.zeros((1,), jnp.int32))
        x = x + table(self.config.max_position_embeddings, "position")(jnp.tile(jnp.arange(length), batch))
        return layers.layer_norm(self, self.config.layer_norm_eps, "norm")(x)


class _Layer(nn.Module):
    """Self-attention and feed-forward, each followed by residual and norm (post-LN)."""

    config: BertConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        config = self.config
        query, key, value = (layers.dense(self, config.width, name)(x) for name in ("query", "key", "value"))
        heads, scale = config.num_attention_heads, (config.width // config.num_attention_heads) ** -0.5
        attended = layers.attend(query, key, value, bias, heads, scale)
        attended = layers.dense(self, config.width, "attention_out")(attended)
        x = layers.layer_norm(self, config.layer_norm_eps, "attention_norm")(x + attended)
        hidden = layers.dense(self, config.intermediate_size, "mlp_in")(x)
        hidden = layers.dense(self, config.width, "mlp_out")(gelu(hidden))
        return layers.layer_norm(self, config.layer_norm_eps, "mlp_norm")(x + hidden)


# Modules inside one layer of a checkpoint -> modules of _Layer.
_LAYER_DENSES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention_out",
    "intermediate.dense": "mlp_in",
    "output.dense": "mlp_out",
}
_LAYER_NORMS = {"attention.output.LayerNorm": "attention_norm", "output.LayerNorm": "mlp_norm"}


def tensor_table(config: BertConfig) -> Iterator[layers.Row]:
    """Yields (name in the checkpoint, path of the Linen parameter, is it transposed)."""
    for name in ("word", "position", "token_type"):
        yield f"embeddings.{name}_embeddings.weight", ("embeddings", name, "embedding"), False
    yield from layers.norm_rows("embeddings.LayerNorm", ("embeddings", "norm"))
    for i in range(config.num_hidden_layers):
        source, layer = f"encoder.layer.{i}", f"layer_{i}"
        for theirs, ours in _LAYER_DENSES.items():
            yield from layers.dense_rows(f"{source}.{theirs}", (layer, ours))
        for theirs, ours in _LAYER_NORMS.items():
            yield from layers.norm_rows(f"{source}.{theirs}", (layer, ours))


def canonical_name(name: str) -> str | None:
    """Return the name that `tensor_table` has for a checkpoint's tensor; None for one that is not needed.

    Checkpoints with heads put "bert." before each name, and those converted from TensorFlow call
    a LayerNorm's weight and bias gamma and beta. Pooler, heads and the stored positions 0..511
    play no part in the last hidden states.
    """
    name = name.removeprefix("bert.")
    if name.startswith(("pooler.", "cls.")) or name == "embeddings.position_ids":
        return None
    if name.endswith("LayerNorm.gamma"):
        return name.removesuffix("gamma") + "weight"
    if name.endswith("LayerNorm.beta"):
        return name.removesuffix("beta") + "bias"
    return name


def tied_names(config: BertConfig) -> dict[str, tuple[str, ...]]:
    """Return other names of a table's tensors, by name, for checkpoints that store a shared tensor once."""
    heads = ("cls.predictions.decoder.weight",) if config.tie_word_embeddings else ()
    return {"embeddings.word_embeddings.weight": heads}
