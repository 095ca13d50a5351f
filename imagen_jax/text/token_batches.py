"""Token ids of captions as padded batches of few different shapes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def bucket(length: int, limit: int) -> int:
    """Return the smallest of 8, 16, 24, 32, 48, 64, 96, 128, ... that holds `length`, at most `limit`.

    These are powers of two and the means of neighbouring ones: at most a third is padding, in few shapes.
    """
    size = 8
    while size < length:
        power = 1 << (size.bit_length() - 1)
        size += 8 if size <= 24 else power // 2
    return min(size, limit)


def padded(ids: Sequence[Sequence[int]], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return input_ids and attention_mask, int32 [B, L], of B captions' token ids; L = length."""
    input_ids = np.full((len(ids), length), pad_id, np.int32)
    mask = np.zeros((len(ids), length), np.int32)
    for i, row in enumerate(ids):
        input_ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return input_ids, mask


def embed_sorted(
    embed: Callable[[list[list[int]], int], jax.Array],
    ids: list[list[int]],
    batch_size: int,
    limit: int,
    *,
    keeps_padding: bool = False,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index, embeddings [its tokens, D]) of each caption, in order of length.

    Args:
      embed: a function from the token ids of B captions and a length L to embeddings [at least B, L, D].
      ids: token ids of all captions.
      batch_size: captions in a batch.
      limit: the largest L.
      keeps_padding: whether all captions are padded to `limit` tokens, and embeddings are those of all of them.
    """
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    length_of = lambda rows: limit if keeps_padding else bucket(len(ids[rows[-1]]), limit)
    upcoming = ((rows, embed([ids[i] for i in rows], length_of(rows))) for rows in batches)
    # The devices compute the next batch while this one is fetched and used.
    following = next(upcoming, None)
    while following is not None:
        (rows, embeddings), following = following, next(upcoming, None)
        for i, embedding in zip(rows, np.asarray(embeddings)[: len(rows)], strict=True):
            yield i, embedding if keeps_padding else embedding[: len(ids[i])]


def check(input_ids: Any, attention_mask: Any, vocab_size: int) -> None:
    """Raise a ValueError unless input_ids and attention_mask are [B, L], and the ids, if known, in the vocabulary."""
    shape, dtype = np.shape(input_ids), getattr(input_ids, "dtype", None)
    is_integer = dtype is not None and jnp.issubdtype(dtype, jnp.integer)
    if len(shape) != 2 or np.shape(attention_mask) != shape or not is_integer:
        raise ValueError(
            f"input_ids must be an integer array [B, L] and attention_mask have its shape; got shapes {shape} and "
            f"{np.shape(attention_mask)} and dtype {dtype}: pass what `tokenize` returns."
        )
    if isinstance(input_ids, jax.core.Tracer) or 0 in shape:
        return
    least, most = int(input_ids.min()), int(input_ids.max())
    if least < 0 or most >= vocab_size:
        wrong = least if least < 0 else most
        raise ValueError(
            f"input_ids must be from 0 to {vocab_size - 1}, the model's vocabulary; got {wrong}: "
            "pass ids of its own tokenizer."
        )
