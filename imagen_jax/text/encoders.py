"""What a text encoder needs to have, and text encoders by name: of published models, or of code outside the package."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax import checks
from imagen_jax.config import TextConfig
from imagen_jax.registry import Registry
from imagen_jax.structs import TextCond
from imagen_jax.text.encoder import TextEncoder, warn_of_other_weights

# Functions (config, mesh) -> Encoder, by the name that text.encoder (--text.encoder) takes. All other names are
# models that `TextEncoder.from_pretrained` finds.
ENCODERS = Registry("text encoder")


class Encoder(Protocol):
    """A frozen model that turns captions into embeddings.

    Attributes:
      name: for messages.
      width: D.
      fingerprint: letters and digits, fit for a directory's name; equal where equal captions get equal embeddings.
    """

    name: str
    width: int
    fingerprint: str

    def encode(self, captions: Sequence[str], /) -> TextCond:
        """Return embeddings [B, L, D] and mask [B, L] of B captions, for any L; each has at least one token."""


def from_config(config: TextConfig, mesh: Mesh | None = None) -> Encoder:
    """Return the encoder that a stage was, or is to be, trained with: `stage.config.text`.

    A warning says if its weights are not those of `config.model_hash`.

    Args:
      config: names the encoder.
      mesh: of this process's devices, which share the work; None: the default device.

    Raises:
      ValueError: there is no such encoder, or its width is not `config.width`.
    """
    if config.encoder not in ENCODERS:
        return TextEncoder.from_config(config, mesh)
    encoder = ENCODERS[config.encoder](config, mesh)
    check(encoder, f"text.encoder {config.encoder}")
    is_width, fix = config.width in (None, encoder.width), "leave it out, or name the text encoder of training"
    checks.require(is_width, "text.width", f"be {encoder.width}, the width of {config.encoder}", config.width, fix)
    warn_of_other_weights(config, model_hash(encoder))
    return encoder


def model_hash(encoder: Encoder) -> str:
    """Return what `TextConfig.model_hash` records of an encoder."""
    return encoder.model_hash if isinstance(encoder, TextEncoder) else encoder.fingerprint


def check(encoder: Any, name: str = "encoder", has_fingerprint: bool = True) -> None:
    """Raise ValueError unless `encoder` is an `Encoder`.

    Args:
      encoder: any value.
      name: of it, in the message.
      has_fingerprint: look at its fingerprint too, for which a `TextEncoder` may have to read its weights.
    """
    words = ("name", "width", "fingerprint")[: 2 + has_fingerprint]
    is_encoder = not isinstance(encoder, type) and callable(getattr(encoder, "encode", None))
    is_encoder = is_encoder and all(hasattr(encoder, word) for word in words)
    checks.require(is_encoder, name, "be a TextEncoder, or have name, width, fingerprint and encode", encoder)


def clean(encoder: Encoder, caption: str) -> str:
    """Return the caption as the encoder sees it."""
    return encoder.clean(caption) if hasattr(encoder, "clean") else caption


def encode(encoder: Encoder, captions: Sequence[str], length: int) -> TextCond:
    """Return embeddings [B, L, D] and mask [B, L] of B captions, cut or padded to L = length tokens."""
    if isinstance(encoder, TextEncoder):  # keeps the special token at the end of captions that it cuts
        return encoder.encode(captions, length=length)
    text = encoder.encode(captions)
    embeddings, mask = jnp.asarray(text.embeddings)[:, :length], jnp.asarray(text.mask)[:, :length]
    missing = (0, length - mask.shape[1])
    return TextCond(jnp.pad(embeddings, ((0, 0), missing, (0, 0))), jnp.pad(mask, ((0, 0), missing)))


def encode_ragged(
    encoder: Encoder, captions: Sequence[str], batch_size: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index of the caption, its embeddings [its tokens, D]), in any order."""
    if not captions:
        return
    if hasattr(encoder, "encode_ragged"):
        yield from encoder.encode_ragged(captions, batch_size)
        return
    for start in range(0, len(captions), batch_size):
        text = encoder.encode(captions[start : start + batch_size])
        for i, (embedding, mask) in enumerate(
            zip(*map(np.asarray, (text.embeddings, text.mask)), strict=True)
        ):
            yield start + i, embedding[mask]
