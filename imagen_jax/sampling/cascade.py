"""From stage to stage: text -> base image -> super-resolution -> ... -> image."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax import checks, resize
from imagen_jax.diffusion.samplers import Info
from imagen_jax.sampling.one_stage import raise_if_broken, run_stage
from imagen_jax.sampling.plan import Plan, plan_cascade
from imagen_jax.stage import Stage
from imagen_jax.structs import TextCond


def sample_cascade(
    stages: tuple[Stage, ...],
    text: TextCond | Sequence[TextCond],
    keys: jax.Array,
    *,
    return_all: bool = False,
    **options: Any,
) -> jax.Array | tuple[jax.Array, ...]:
    """Samples one image per caption and key through all stages. Pure: `jax.jit` takes it whole.

    Args:
      stages: base first, as from `load_cascade`.
      text: B encoded captions, as from `TextEncoder.encode`; or several such batches with `weights`.
      keys: [B], as from `image_keys`; image i depends on its caption and key alone.
      return_all: also return the images of the earlier stages.
      **options: options of `SamplingConfig`, each one value for all stages or a tuple of one per
        stage (None: the stage's own), such as steps=(64, 32) or guidance_scale=8.0. A method is a name or an
        instance, such as sampler=MySampler(). And of these:
        start, stop: names of the first and the last stage to run, instead of all.
        low_res: [B, h, w, C] the image that a super-resolution stage starts from, if one comes first.
        size: (H, W) of the result, if not square; every stage keeps its share of it.
        image: [B, H, W, C] of the result's size: every stage starts from it (strength) or paints in it (mask).
        mask: [B, H, W] or [B, H, W, 1]: 1 = paint here. A small pixel is painted if any part of it is.
        control: [B, H, W, C'] resized for every stage that takes one.
        z_1: initial noise of the first stage, [B, h, w, C], or a tuple of one (or None) per stage.
        negative, weights: see `sample_stage`.
        null: [1] what the text encoder returns for the empty string, for stages that have this as the null caption of
          guidance, such as those of DeepFloyd IF; without effect on others.
        weak: a weaker stage for autoguidance, or a tuple of one (or None) per stage.
        Under `jax.jit` close over those that are no arrays.

    Returns:
      [B, H, W, C] float32 in [-1, 1]; with return_all a tuple of one array per stage.

    Raises:
      ValueError: an argument is of the wrong type, shape or range; pictures are floats in [-1, 1]. Inside `jax.jit`
        values are not known, and not looked at.
      FloatingPointError: a network returned NaN or infinity; see `sample_stage`.
    """
    return_all = checks.boolean("return_all", return_all)
    plan = plan_cascade(stages, text, keys, **options)
    images, infos = run_cascade(plan)
    raise_if_any_broken(plan.stages, infos)
    return images if return_all else images[-1]


def run_cascade(plan: Plan) -> tuple[tuple[jax.Array, ...], tuple[Info, ...]]:
    """Sample all stages, without looking for broken images: (images, info) of every stage."""
    images, infos = [], []
    for stage, own, recipe, values in zip(plan.stages, plan.inputs, plan.recipes, plan.values, strict=True):
        own = own.replace(
            low_res=images[-1] if images else own.low_res,
            image=_fit(own.image, recipe.size),
            mask=_fit_mask(own.mask, recipe.size),
            control=_fit(own.control, recipe.size),
        )
        x, info = run_stage(stage, plan.texts, plan.keys, own, recipe, values)
        images.append(x)
        infos.append(info)
    return tuple(images), tuple(infos)


def raise_if_any_broken(stages: tuple[Stage, ...], infos: Sequence[Info]) -> None:
    """`raise_if_broken` for all stages that ran, first to last."""
    for stage, info in zip(stages, infos, strict=True):
        raise_if_broken(stage.config, info)


def _fit(image: jax.Array | None, size: tuple[int, int]) -> jax.Array | None:
    """The image at another size: averaged where it is larger, interpolated where it is smaller."""
    if image is None or tuple(image.shape[1:3]) == tuple(size):
        return image
    image = jnp.asarray(image, jnp.float32)
    height, width = (min(new, old) for new, old in zip(size, image.shape[1:3], strict=True))
    return resize.bilinear(resize.area(image, (height, width)), size)


def _fit_mask(mask: jax.Array | None, size: tuple[int, int]) -> jax.Array | None:
    """The mask at a smaller size, [B, H, W, 1]: 1 where any part of a pixel is."""
    if mask is None:
        return None
    mask = jnp.asarray(mask, jnp.float32).reshape(*mask.shape[:3], 1)
    return jnp.ceil(jnp.minimum(resize.area(mask, size), 1))
