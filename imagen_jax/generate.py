"""Prompts to pictures: encoding, batching and padding around `sample_cascade`."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from imagen_jax import parallel
from imagen_jax.cascade import sample_cascade
from imagen_jax.stage import Stage, image_keys
from imagen_jax.structs import TextCond
from imagen_jax.text.encoder import TextEncoder


def generate(
    stages: tuple[Stage, ...],
    encoder: TextEncoder,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    batch_size: int = 16,
    **options: Any,
) -> Iterator[tuple[np.ndarray, ...]]:
    """Samples prompts[i] with seed seeds[i], in compiled batches of one size, over all devices.

    Args:
      stages: as from `load_cascade`.
      encoder: the one that the stages were trained with.
      prompts: any number of captions.
      seeds: one per prompt; an image depends on its prompt and seed alone.
      batch_size: images computed at once; rounded up to a multiple of the devices.
      **options: of `sample_cascade`.

    Yields:
      for each prompt in order, its image after every stage: [h, w, C] float32 in [-1, 1].
    """
    mesh = parallel.make_mesh()
    batch_size += -batch_size % mesh.size
    stages = parallel.replicate(stages, mesh)
    keys = jax.numpy.concatenate([image_keys(seed, 1) for seed in seeds])
    text = encode(stages, encoder, prompts)
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, min(start + batch_size, len(prompts)))
        inputs = parallel.pad_batch(jax.tree.map(lambda leaf: leaf[rows], (text, keys)), batch_size, mesh)  # noqa: B023
        images = jax.device_get(sample_cascade(stages, *inputs, return_all=True, **options))
        for i in range(rows.stop - rows.start):
            yield tuple(stage_images[i] for stage_images in images)


def encode(stages: tuple[Stage, ...], encoder: TextEncoder, prompts: Sequence[str]) -> TextCond:
    """Captions at the length that the stages were trained with; a warning says which are cut."""
    settings = stages[0].config.text
    if encoder.width != settings.width:
        raise ValueError(
            f"the encoder must be the one of training, {settings.encoder} of width {settings.width}; "
            f"got {encoder.name} of width {encoder.width}."
        )
    return encoder.encode(prompts, length=settings.length)
