"""CLIP text encoder (Radford et al. 2021, arXiv:2103.00020) in Linen.

A causal pre-norm transformer. `ClipConfig.output` says what it returns: the last hidden states, after the
final norm; the penultimate ones, which the paper takes, before any norm; or the pooled one, the last hidden
state of the end of the text alone. Checkpoints of the whole model and of its text half load alike.
`tensor_table` says where each tensor of a Hugging Face checkpoint goes, `open_clip_table` the same of one as
open_clip writes it.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.layers import gelu
from imagen_jax.text import layers

_ACTIVATIONS = {
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),  # OpenAI's weights
    "gelu": gelu,  # OpenCLIP's
}

OUTPUTS = ("last", "penultimate", "pooled")


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """Sizes of a CLIP text encoder, named as in a Hugging Face config.json, whose defaults they have."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407
    output: str = "last"

    def __post_init__(self):
        if self.output not in OUTPUTS:
            raise ValueError(
                f"the output of CLIP must be one of {', '.join(OUTPUTS)}; got {self.output!r}: choose one."
            )
        check_layer(self)

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ClipConfig":
        """Return the config of a parsed Hugging Face config.json, of the whole model or of its text half.

        Raises:
          ValueError: the model does something this encoder does not.
        """
        config = layers.section("CLIP", config, "text_config") or config
        return cls(**layers.sizes(cls, "CLIP", {k: v for k, v in config.items() if k != "output"}))

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
            "intermediate_size",
            "num_attention_heads",
            "max_position_embeddings",
        )
        return {name: getattr(self, name) for name in names}


def check_layer(config: Any) -> None:
    """Raises ValueError unless `Layer` computes what `config`, of either half, says."""
    if config.hidden_act not in _ACTIVATIONS:
        raise ValueError(
            f"CLIP config.json: hidden_act must be one of {', '.join(_ACTIVATIONS)}; got {config.hidden_act!r:.80}: "
            "this encoder computes nothing else, so choose another CLIP."
        )
    layers.check_heads(config.hidden_size, config.num_attention_heads)


class ClipEncoder(nn.Module):
    """Token ids to hidden states.

    `dtype` is what the matrix products compute in; softmax and norm statistics are fp32 always.
    """

    config: ClipConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """input_ids [B, L] int32 and attention_mask [B, L] (nonzero at tokens) -> [B, L, D], or [B, 1, D] if pooled."""
        config, (batch, length) = self.config, input_ids.shape
        layers.check_length("CLIP", input_ids, config.max_length)

        def table(num: int, name: str) -> nn.Module:
            return layers.embedding(self, num, config.width, name)

        # [B L, D] from here on: XLA fuses what follows a product better behind two axes than behind three.
        x = table(config.vocab_size, "token")(input_ids.reshape(-1))
        x = x + table(config.max_position_embeddings, "position")(jnp.tile(jnp.arange(length), batch))
        ahead = jnp.triu(jnp.full((length, length), layers.MASKED, jnp.float32), 1)
        # The lower of the two, not their sum, which two masks could push to -inf.
        bias = jnp.minimum(layers.padding_bias(attention_mask), ahead[None, None])
        for i in range(config.num_hidden_layers):
            before, x = x, Layer(config, self.dtype, self.param_dtype, name=f"layer_{i}")(x, bias)
        x = layers.layer_norm(self, config.layer_norm_eps, "norm")(x)
        if config.output == "penultimate":  # what comes after is not computed: XLA drops it
            x = before
        x = x.reshape(batch, length, -1)
        if config.output == "pooled":
            x = jnp.take_along_axis(x, _end(input_ids, config.eos_token_id)[:, None, None], axis=1)
        return x


def _end(input_ids: jax.Array, eos_token_id: int) -> jax.Array:
    """Return the position [B] of the first end-of-text token; padding may be the same token.

    Configs of before 2023 give 2 for that token, wrongly; there it is the highest id of the vocabulary.
    """
    is_end = input_ids == (input_ids.max(-1, keepdims=True) if eos_token_id == 2 else eos_token_id)
    return jnp.argmax(is_end, axis=-1)


class Layer(nn.Module):
    """Self-attention and feed-forward, each behind a norm (pre-LN) and added to the residual.

    The image half has the same: any `config` with the fields of a ClipConfig that are read here will do.
    """

    config: Any
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        config = self.config
        h = layers.layer_norm(self, config.layer_norm_eps, "attention_norm")(x)
        width, heads = config.hidden_size, config.num_attention_heads
        query, key, value = (layers.dense(self, width, name)(h) for name in ("query", "key", "value"))
        attended = layers.attend(query, key, value, bias, heads, (width // heads) ** -0.5)
        x = x + layers.dense(self, width, "attention_out")(attended)
        h = layers.layer_norm(self, config.layer_norm_eps, "mlp_norm")(x)
        h = _ACTIVATIONS[config.hidden_act](layers.dense(self, config.intermediate_size, "mlp_in")(h))
        return x + layers.dense(self, width, "mlp_out")(h)


# Modules inside one layer of a checkpoint -> modules of Layer.
_LAYER_DENSES = {
    "self_attn.q_proj": "query",
    "self_attn.k_proj": "key",
    "self_attn.v_proj": "value",
    "self_attn.out_proj": "attention_out",
    "mlp.fc1": "mlp_in",
    "mlp.fc2": "mlp_out",
}
_LAYER_NORMS = {"layer_norm1": "attention_norm", "layer_norm2": "mlp_norm"}


def tensor_table(config: ClipConfig) -> Iterator[layers.Row]:
    """Yields (name in the checkpoint, path of the Linen parameter, is it transposed)."""
    for name in ("token", "position"):
        yield f"text_model.embeddings.{name}_embedding.weight", (name, "embedding"), False
    yield from layer_rows("text_model", config.num_hidden_layers)
    yield from layers.norm_rows("text_model.final_layer_norm", ("norm",))


def layer_rows(source: str, num_layers: int) -> Iterator[layers.Row]:
    """Of `tensor_table`: the layers of one half, `source`, as layer_0, layer_1, ..."""
    for i in range(num_layers):
        for theirs, ours in _LAYER_DENSES.items():
            yield from layers.dense_rows(f"{source}.encoder.layers.{i}.{theirs}", (f"layer_{i}", ours))
        for theirs, ours in _LAYER_NORMS.items():
            yield from layers.norm_rows(f"{source}.encoder.layers.{i}.{theirs}", (f"layer_{i}", ours))


def canonical_name(name: str) -> str | None:
    """Return the name that `tensor_table` has for a checkpoint's tensor; None for one that is not needed.

    The image half, the projections into the space of both, and stored positions play no part.
    """
    if name.startswith(("vision_model.", "visual_projection.", "text_projection.", "logit_scale")):
        return None
    name = "text_model." + name.removeprefix("text_model.")  # newer files of the text half leave it out
    return None if name == "text_model.embeddings.position_ids" else name


# --- as open_clip writes it ---------------------------------------------------------------------


def open_clip_config(config: Mapping[str, Any]) -> ClipConfig:
    """Return the config of a parsed open_clip_config.json.

    Raises:
      ValueError: a size is missing, or the model does something this encoder does not.
    """
    model = layers.section("open_clip", config, "model_cfg")
    text = layers.section("open_clip", model, "text_cfg")
    for key, supported in (
        ("hf_model_name", None),
        ("embed_cls", False),
        ("no_causal_mask", False),
        ("pool_type", "argmax"),
    ):
        if text.get(key, supported) != supported:
            raise ValueError(
                f"open_clip_config.json: text_cfg.{key} must be {supported!r}; got {text[key]!r:.80}: this encoder "
                "computes nothing else, so choose another text encoder."
            )
    names = {
        "vocab_size": "vocab_size", "hidden_size": "width", "num_hidden_layers": "layers",
        "num_attention_heads": "heads", "max_position_embeddings": "context_length",
    }  # fmt: skip
    missing = [theirs for theirs in names.values() if theirs not in text]
    if missing:
        raise ValueError(
            f"open_clip_config.json must hold text_cfg.{missing[0]}, which is missing; get a complete copy."
        )
    found = {ours: text[theirs] for ours, theirs in names.items()}
    width, ratio = text["width"], text.get("mlp_ratio", 4)
    if type(width) is not int or type(ratio) not in (int, float) or not 0 < width * ratio < 2**31:
        raise ValueError(
            f"open_clip_config.json: text_cfg.width and mlp_ratio must be positive numbers; got {width!r:.40} and "
            f"{ratio!r:.40}: get a complete copy."
        )
    found["intermediate_size"] = int(width * ratio)
    found["hidden_act"] = "quick_gelu" if model.get("quick_gelu") else "gelu"
    return ClipConfig(**layers.sizes(ClipConfig, "CLIP", found | {"eos_token_id": 2}))


def open_clip_table(config: ClipConfig) -> Iterator[layers.Row]:
    """As `tensor_table`; rows of one name are stacked in that tensor, in order."""
    yield "token_embedding.weight", ("token", "embedding"), False
    yield "positional_embedding", ("position", "embedding"), False
    for i in range(config.num_hidden_layers):
        source, layer = f"transformer.resblocks.{i}", f"layer_{i}"
        for name in ("query", "key", "value"):
            yield f"{source}.attn.in_proj_weight", (layer, name, "kernel"), True
        for name in ("query", "key", "value"):
            yield f"{source}.attn.in_proj_bias", (layer, name, "bias"), False
        denses = {"attn.out_proj": "attention_out", "mlp.c_fc": "mlp_in", "mlp.c_proj": "mlp_out"}
        for theirs, ours in denses.items():
            yield from layers.dense_rows(f"{source}.{theirs}", (layer, ours))
        for theirs, ours in {"ln_1": "attention_norm", "ln_2": "mlp_norm"}.items():
            yield from layers.norm_rows(f"{source}.{theirs}", (layer, ours))
    yield from layers.norm_rows("ln_final", ("norm",))


def open_clip_name(name: str) -> str | None:
    """The name `open_clip_table` uses for a checkpoint's tensor; None for one that is not needed."""
    if name.startswith("visual."):
        return None
    name = name.removeprefix("text.")
    return None if name in ("text_projection", "logit_scale", "logit_bias", "attn_mask") else name
