"""From stage to stage: text -> base image -> super-resolution -> ... -> image."""

import dataclasses
from typing import Any

import jax

from imagen_jax.config import SamplingConfig
from imagen_jax.stage import Stage, sample_stage
from imagen_jax.structs import TextCond


def sample_cascade(
    stages: tuple[Stage, ...], text: TextCond, keys: jax.Array, *, return_all: bool = False, **options: Any
) -> jax.Array | tuple[jax.Array, ...]:
    """Samples one image per caption and key through all stages. Pure: `jax.jit` takes it whole.

    Args:
      stages: base first, as from `load_cascade`.
      text: B encoded captions, as from `TextEncoder.encode`.
      keys: [B], as from `image_keys`; image i depends on its caption and key alone.
      return_all: also return the images of the earlier stages.
      **options: fields of `SamplingConfig`, each one value for all stages or a tuple of one per
        stage, such as steps=(64, 32) or guidance_scale=8.0. Under `jax.jit` close over them.

    Returns:
      [B, H, W, C] float32 in [-1, 1]; with return_all a tuple of one array per stage.
    """
    images = []
    for stage, sampling in zip(stages, sampling_by_stage(stages, options), strict=True):
        low_res = images[-1] if images else None
        images.append(sample_stage(stage, text, keys, low_res=low_res, sampling=sampling))
    return tuple(images) if return_all else images[-1]


def sampling_by_stage(stages: tuple[Stage, ...], options: dict[str, Any]) -> list[SamplingConfig]:
    """Each stage's own settings with `options` put over them; see `sample_cascade`."""
    known = [field.name for field in dataclasses.fields(SamplingConfig)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"sampling options must be among {', '.join(known)}; got {', '.join(unknown)}.")
    for name, value in options.items():
        if isinstance(value, tuple | list) and len(value) != len(stages):
            raise ValueError(
                f"{name} must be one value or one for each of the {len(stages)} stages; got {len(value)} values."
            )
    return [
        dataclasses.replace(
            stage.config.sampling,
            **{
                name: value[i] if isinstance(value, tuple | list) else value
                for name, value in options.items()
            },
        )
        for i, stage in enumerate(stages)
    ]
