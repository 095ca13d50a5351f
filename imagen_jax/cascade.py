"""From stage to stage: text -> base image -> super-resolution -> ... -> image."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import resize
from imagen_jax.config import SamplingConfig, StageConfig, override
from imagen_jax.diffusion.samplers import Info
from imagen_jax.inputs import Inputs, require_float, require_mask
from imagen_jax.stage import Stage, check_stage, raise_if_broken, run_stage
from imagen_jax.structs import TextCond
from imagen_jax.validation import validate_sampling

# Fields of SamplingConfig that say something to super-resolution stages alone.
_SUPER_RESOLUTION = ("aug_level",)


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
      **options: fields of `SamplingConfig`, each one value for all stages or a tuple of one per
        stage (None: the stage's own), such as steps=(64, 32) or guidance_scale=8.0. And of these:
        start, stop: names of the first and the last stage to run, instead of all.
        low_res: [B, h, w, C] the image that a super-resolution stage starts from, if one comes first.
        size: (H, W) of the result, if not square; every stage keeps its share of it.
        image: [B, H, W, C] of the result's size: every stage starts from it (strength) or paints in it (mask).
        mask: [B, H, W] or [B, H, W, 1]: 1 = paint here. A small pixel is painted if any part of it is.
        cond_image: [B, H, W, C'] resized for every stage that takes one.
        z_1: initial noise of the first stage, [B, h, w, C], or a tuple of one (or None) per stage.
        negative, weights: see `sample_stage`.
        weak: a weaker stage for autoguidance, or a tuple of one (or None) per stage.
        Under `jax.jit` close over those that are no arrays.

    Returns:
      [B, H, W, C] float32 in [-1, 1]; with return_all a tuple of one array per stage.

    Raises:
      FloatingPointError: a network returned NaN or infinity; see `sample_stage`.
    """
    images, infos = run_cascade(stages, text, keys, **options)
    raise_if_any_broken(between(stages, options), infos)
    return images if return_all else images[-1]


def run_cascade(
    stages: tuple[Stage, ...],
    text: TextCond | Sequence[TextCond],
    keys: jax.Array,
    *,
    start: str | None = None,
    stop: str | None = None,
    low_res: jax.Array | None = None,
    size: tuple[int, int] | None = None,
    image: jax.Array | None = None,
    mask: jax.Array | None = None,
    cond_image: jax.Array | None = None,
    z_1: jax.Array | Sequence[jax.Array | None] | None = None,
    negative: TextCond | None = None,
    weights: Sequence[float] | None = None,
    weak: Stage | Sequence[Stage | None] | None = None,
    **options: Any,
) -> tuple[tuple[jax.Array, ...], tuple[Info, ...]]:
    """`sample_cascade` that leaves it to the caller to look for broken images: (images, info) of every stage."""
    stages = between(stages, {"start": start, "stop": stop})
    texts = (text,) if isinstance(text, TextCond) else tuple(text)
    weights = None if weights is None else tuple(float(weight) for weight in weights)
    weak_stages = _one_each(weak, stages, "weak")
    settings = sampling_by_stage(stages, options, weak_stages)
    sizes = sizes_by_stage(tuple(stage.config for stage in stages), size)
    noises = (z_1, *[None] * (len(stages) - 1)) if hasattr(z_1, "ndim") else _one_each(z_1, stages, "z_1")
    if negative is not None and not any(sampling.is_guided for sampling in settings):
        raise ValueError("guidance_scale must not be 1 (off) in every stage with a negative prompt; got 1.")
    mask = _check_pictures(stages, settings, sizes[-1], image, mask, cond_image, low_res)

    inputs = []
    for i, stage in enumerate(stages):
        takes_image = mask is not None or settings[i].strength < 1
        takes_sketch = cond_image is not None and stage.config.cond_image_channels > 0
        own = Inputs(
            low_res=low_res if i == 0 else _shape_of_low_res(stage.config, sizes[i], len(keys)),
            image=_fit(image, sizes[i]) if image is not None and takes_image else None,
            mask=jnp.ceil(jnp.minimum(resize.area(mask, sizes[i]), 1)) if mask is not None else None,
            cond_image=_fit(cond_image, sizes[i]) if takes_sketch else None,
            z_1=noises[i],
            negative=negative if settings[i].is_guided else None,
            weak=weak_stages[i],
        )
        check_stage(stage.config, texts, keys, own, settings[i], weights, sizes[i])
        inputs.append(own)

    images, infos = [], []
    for stage, own, sampling, stage_size in zip(stages, inputs, settings, sizes, strict=True):
        if images:
            own = own.replace(low_res=images[-1])
        x, info = run_stage(stage, texts, keys, own, sampling, weights, stage_size)
        images.append(x)
        infos.append(info)
    return tuple(images), tuple(infos)


def raise_if_any_broken(stages: tuple[Stage, ...], infos: Sequence[Info]) -> None:
    """`raise_if_broken` for all stages that ran, first to last."""
    for stage, info in zip(stages, infos, strict=True):
        raise_if_broken(stage.config, info)


def _check_pictures(
    stages: tuple[Stage, ...],
    settings: list[SamplingConfig],
    size: tuple[int, int],
    image: jax.Array | None,
    mask: jax.Array | None,
    cond_image: jax.Array | None,
    low_res: jax.Array | None,
) -> jax.Array | None:
    """Checks what is given at the result's size; the mask as float [B, H, W, 1]."""
    require_float(image=image, low_res=low_res, cond_image=cond_image)
    if image is not None and image.shape[1:3] != size:
        raise ValueError(
            f"image must be of the result's size {size}; got {image.shape[1:3]}: resize it, or give size."
        )
    if image is not None and mask is None and all(s.strength == 1 for s in settings):
        raise ValueError(
            "strength must be below 1 for an image without a mask, or the image is forgotten; got 1."
        )
    if cond_image is not None and not any(stage.config.cond_image_channels for stage in stages):
        raise ValueError("cond_image must be left out: no stage was trained with one (cond_image_channels).")
    if mask is None:
        return None
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    whole = None if image is None else image.shape[:3]
    if mask.shape not in (whole, (*(whole or ()), 1)):
        raise ValueError(
            "mask must have the image's size, [B, H, W] or [B, H, W, 1] (1 = paint here); "
            f"got {mask.shape} for image {None if image is None else image.shape}."
        )
    require_mask(mask)
    return jnp.asarray(mask, jnp.float32).reshape(*mask.shape[:3], 1)


def _shape_of_low_res(config: StageConfig, size: tuple[int, int], batch: int) -> jax.ShapeDtypeStruct:
    """Of what the stage before gives."""
    sides = (side * config.low_res_size // config.image_size for side in size)
    return jax.ShapeDtypeStruct((batch, *sides, config.image_channels), jnp.float32)


def between(stages: tuple[Stage, ...], options: dict[str, Any]) -> tuple[Stage, ...]:
    """The stages from options["start"] to options["stop"], both by name and both included."""
    names = [stage.config.name for stage in stages]
    for end in ("start", "stop"):
        if options.get(end) not in (None, *names):
            raise ValueError(f"{end} must be a stage, one of {', '.join(names)}; got {options[end]!r}.")
    first = names.index(options.get("start") or names[0])
    last = names.index(options.get("stop") or names[-1])
    if first > last:
        raise ValueError(f"start must not come after stop; got {names[first]} and {names[last]}.")
    return tuple(stages[first : last + 1])


def sizes_by_stage(
    configs: tuple[StageConfig, ...], size: tuple[int, int] | None = None
) -> list[tuple[int, int]]:
    """(H, W) at every stage for a result of `size`; their own sizes if that is None."""
    last = configs[-1].image_size
    if size is None:
        return [(config.image_size,) * 2 for config in configs]
    sizes = []
    for config in configs:
        sides = [side * config.image_size / last for side in size]
        if not all(side > 0 and side % config.network.stride == 0 for side in sides):
            needed = max(c.network.stride * last // c.image_size for c in configs)
            raise ValueError(
                f"size must be (H, W) in multiples of {needed}, so that every stage gets multiples of its stride; "
                f"got {tuple(size)}."
            )
        sizes.append(tuple(int(side) for side in sides))
    return sizes


def sampling_by_stage(
    stages: tuple[Stage, ...], options: dict[str, Any], weak: Sequence[Stage | None] | None = None
) -> list[SamplingConfig]:
    """Each stage's own settings with `options` put over them, checked; see `sample_cascade`."""
    options = {n: v.tolist() if getattr(v, "ndim", 0) == 1 else v for n, v in options.items()}
    known = [field.name for field in dataclasses.fields(SamplingConfig)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"sampling options must be among {', '.join(known)}; got {', '.join(unknown)}.")
    for name, value in options.items():
        if isinstance(value, tuple | list) and len(value) != len(stages):
            raise ValueError(
                f"{name} must be one value or one for each of the {len(stages)} stages; got {len(value)} values."
            )
    settings = []
    for i, stage in enumerate(stages):
        own = {n: v[i] if isinstance(v, tuple | list) else v for n, v in options.items()}
        own = {name: value for name, value in own.items() if value is not None}
        if not stage.config.is_super_resolution:
            for name in set(own) & set(_SUPER_RESOLUTION):
                if isinstance(options[name], tuple | list) or len(stages) == 1:
                    raise ValueError(
                        f"{name} must be left out (None) for stage {stage.config.name}, which has no low-res image; "
                        f"got {own[name]}."
                    )
                del own[name]
        sampling = override(stage.config.sampling, own)
        is_weak_given = weak is not None and weak[i] is not None
        settings.append(validate_sampling(stage.config, sampling, needs_null=not is_weak_given))
    return settings


def _one_each(value: Any, stages: tuple[Stage, ...], name: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        if value is not None and len(stages) > 1:
            raise ValueError(
                f"{name} must be a tuple of one or None for each of the {len(stages)} stages; got one."
            )
        return (value,) * len(stages)
    if len(value) != len(stages):
        raise ValueError(
            f"{name} must be one or None for each of the {len(stages)} stages; got {len(value)}."
        )
    return tuple(value)


def _fit(image: jax.Array, size: tuple[int, int]) -> jax.Array:
    """The image at another size: averaged where it is larger, interpolated where it is smaller."""
    if tuple(image.shape[1:3]) == tuple(size):
        return image
    image = jnp.asarray(image, jnp.float32)
    height, width = (min(new, old) for new, old in zip(size, image.shape[1:3], strict=True))
    return resize.bilinear(resize.area(image, (height, width)), size)
