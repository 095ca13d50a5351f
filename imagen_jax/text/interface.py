"""What a text encoder needs to have: `TextEncoder` has it, and a class of one's own may."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from imagen_jax import checks
from imagen_jax.structs import TextCond


class Encoder(Protocol):
    """A frozen model that turns captions into embeddings.

    Attributes:
      name: for messages.
      width: D.
      fingerprint: a name for a directory, of letters and digits; equal where equal captions get equal embeddings.
    """

    name: str
    width: int
    fingerprint: str

    def encode(self, captions: Sequence[str], /) -> TextCond:
        """Return embeddings [B, L, D] and mask [B, L] of B captions, any L; at least one token of each."""


def check(encoder: Any, name: str = "encoder") -> None:
    """Raise ValueError unless `encoder` is an `Encoder`."""
    is_encoder = not isinstance(encoder, type) and callable(getattr(encoder, "encode", None))
    is_encoder = is_encoder and all(hasattr(encoder, word) for word in ("name", "width", "fingerprint"))
    checks.require(is_encoder, name, "be a TextEncoder, or have name, width, fingerprint and encode", encoder)


def clean(encoder: Encoder, caption: str) -> str:
    """Return the caption as the encoder sees it."""
    return encoder.clean(caption) if hasattr(encoder, "clean") else caption


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
