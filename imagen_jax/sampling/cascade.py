"""From stage to stage: text -> base image -> super-resolution -> ... -> image."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from imagen_jax import arrays, checks, resize
from imagen_jax.checks import Verbatim, error, plain, require
from imagen_jax.config import SamplingConfig, StageConfig, override
from imagen_jax.config.validation import validate_sampling
from imagen_jax.diffusion.samplers import Info
from imagen_jax.sampling.inputs import Inputs, check_noise, check_request, check_size
from imagen_jax.sampling.one_stage import check_params, check_stage, raise_if_broken, require_stage, run_stage
from imagen_jax.stage import Stage
from imagen_jax.structs import TextCond

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
      ValueError: an argument is of the wrong type, shape or range; pictures are floats in [-1, 1]. Inside `jax.jit`
        values are not known, and not looked at.
      FloatingPointError: a network returned NaN or infinity; see `sample_stage`.
    """
    return_all = checks.boolean("return_all", return_all)
    images, infos = run_cascade(stages, text, keys, **options)
    raise_if_any_broken(between(stages, options), infos)
    return images if return_all else images[-1]


class Request(NamedTuple):
    """Checked arguments of `run_cascade`; lists have one entry for each stage that runs."""

    stages: tuple[Stage, ...]
    texts: tuple[TextCond, ...]
    weights: tuple[float, ...] | None
    inputs: list[Inputs]  # pictures at the result's size
    settings: list[SamplingConfig]
    sizes: list[tuple[int, int]]


def check_cascade(
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
    may_be_shapes: bool = False,
    **options: Any,
) -> Request:
    """Check all that `sample_cascade` is given, before anything is traced; the only place where that is done.

    Args:
      stages, text, keys, **options: see `sample_cascade`.
      may_be_shapes: see `check_request`.

    Raises:
      ValueError: one line that names the argument.
    """
    stages = between(stages, {"start": start, "stop": stop})
    weak_stages = _one_each(weak, stages, "weak")
    for each in weak_stages:
        if each is not None:
            check_params("weak", require_stage("weak", each))
    for i, stage in enumerate(stages):
        check_params(f"stages[{i}]", stage)
    settings = sampling_by_stage(stages, options, weak_stages)
    sizes = sizes_by_stage(tuple(stage.config for stage in stages), size)
    noises = (z_1, *[None] * (len(stages) - 1)) if arrays.is_array(z_1) else _one_each(z_1, stages, "z_1")
    given = Inputs(
        low_res=low_res, negative=negative, image=image, mask=mask, cond_image=cond_image, z_1=noises[0]
    )
    texts, weights = check_request(text, keys, weights, given, may_be_shapes=may_be_shapes)
    for i, noise in enumerate(noises[1:], 1):
        check_noise(f"z_1[{i}]", noise)
    is_guided = any(sampling.is_guided for sampling in settings)
    rule = "not be 1 (off) in every stage with a negative prompt"
    require(negative is None or is_guided, "guidance_scale", rule, 1)
    _check_pictures(stages, settings, sizes[-1], given)
    _check_order(stages)

    inputs = []
    for i, stage in enumerate(stages):
        takes_image = image is not None and (mask is not None or settings[i].strength < 1)
        takes_control = cond_image is not None and stage.config.control_channels > 0
        own = Inputs(
            low_res=low_res if i == 0 else _shape_of_low_res(stage.config, sizes[i], keys.shape[0]),
            image=image if takes_image else None,
            mask=mask,
            cond_image=cond_image if takes_control else None,
            z_1=noises[i],
            negative=negative if settings[i].is_guided else None,
            weak=weak_stages[i],
        )
        resized = {name: _at_size(getattr(own, name), sizes[i]) for name in ("image", "mask", "cond_image")}
        check_stage(stage.config, texts, keys, own.replace(**resized), settings[i], sizes[i])
        inputs.append(own)
    return Request(stages, texts, weights, inputs, settings, sizes)


def run_cascade(
    stages: tuple[Stage, ...], text: TextCond | Sequence[TextCond], keys: jax.Array, **options: Any
) -> tuple[tuple[jax.Array, ...], tuple[Info, ...]]:
    """`sample_cascade` that leaves it to the caller to look for broken images: (images, info) of every stage."""
    request = check_cascade(stages, text, keys, **options)
    images, infos = [], []
    for stage, own, sampling, size in zip(
        request.stages, request.inputs, request.settings, request.sizes, strict=True
    ):
        own = own.replace(
            low_res=images[-1] if images else own.low_res,
            image=_fit(own.image, size),
            mask=_fit_mask(own.mask, size),
            cond_image=_fit(own.cond_image, size),
        )
        x, info = run_stage(stage, request.texts, keys, own, sampling, request.weights, size)
        images.append(x)
        infos.append(info)
    return tuple(images), tuple(infos)


def raise_if_any_broken(stages: tuple[Stage, ...], infos: Sequence[Info]) -> None:
    """`raise_if_broken` for all stages that ran, first to last."""
    for stage, info in zip(stages, infos, strict=True):
        raise_if_broken(stage.config, info)


def _check_pictures(
    stages: tuple[Stage, ...], settings: list[SamplingConfig], size: tuple[int, int], given: Inputs
) -> None:
    """Checks what is given at the result's size."""
    if given.image is not None:
        sides = tuple(given.image.shape[1:3])
        is_right = given.image.ndim == 4 and sides == size
        rule = f"be [B, H, W, C] of the result's size {size}"
        require(is_right, "image", rule, Verbatim(tuple(given.image.shape)), "resize it, or give size")
        has_effect = given.mask is not None or any(s.strength < 1 for s in settings)
        rule = "be below 1 for an image without a mask, otherwise the image has no effect"
        require(has_effect, "strength", rule, 1)
    if given.cond_image is not None:
        require(given.cond_image.ndim == 4, "cond_image", "be [B, H, W, C]", Verbatim(tuple(given.cond_image.shape)))
        is_used = any(stage.config.control_channels for stage in stages)
        rule = "be left out: no stage was trained with one (control_channels)"
        require(is_used, "cond_image", rule, given.cond_image)
    if given.mask is not None:
        shape = None if given.image is None else tuple(given.image.shape)
        whole = None if shape is None else shape[:3]
        is_right = tuple(given.mask.shape) in (whole, (*(whole or ()), 1))
        rule = "have the image's size, [B, H, W] or [B, H, W, 1] (1 = paint here)"
        require(is_right, "mask", rule, Verbatim(f"{tuple(given.mask.shape)} for image {shape}"))


def _check_order(stages: tuple[Stage, ...]) -> None:
    """Raises a ValueError unless each stage enlarges what the one before it makes."""
    configs = [stage.config for stage in stages]
    for i, (before, config) in enumerate(zip(configs, configs[1:], strict=False), 1):
        made, taken = (before.image_size, before.image_channels), (config.low_res_size, config.image_channels)
        rule = f"enlarge the images of stage {before.name}, which have {made[0]} pixels a side and {made[1]} channels"
        got = Verbatim(f"stage {config.name} with low_res_size {taken[0]} and image_channels {taken[1]}")
        require(made == taken, f"stages[{i}]", rule, got)


def _shape_of_low_res(config: StageConfig, size: tuple[int, int], batch: int) -> jax.ShapeDtypeStruct:
    """Shape of the previous stage's output."""
    sides = (side * config.low_res_size // config.image_size for side in size)
    return jax.ShapeDtypeStruct((batch, *sides, config.image_channels), jnp.float32)


def between(stages: tuple[Stage, ...], options: dict[str, Any]) -> tuple[Stage, ...]:
    """The stages from options["start"] to options["stop"], both by name and both included."""
    is_list = isinstance(stages, tuple | list) and len(stages) > 0
    fix = "give (stage,)" if isinstance(stages, Stage) else ""
    require(is_list, "stages", "be a tuple of at least one Stage, as from load_cascade", stages, fix)
    for i, stage in enumerate(stages):
        require_stage(f"stages[{i}]", stage)
    names = [stage.config.name for stage in stages]
    require(len(set(names)) == len(names), "stages", "have distinct names", Verbatim(", ".join(names)))
    for end in ("start", "stop"):
        name = options.get(end)
        is_stage = name is None or (isinstance(name, str) and name in names)
        require(is_stage, end, f"be a stage, one of {', '.join(names)}", name)
    first = names.index(options.get("start") or names[0])
    last = names.index(options.get("stop") or names[-1])
    rule = "not come after stop"
    require(first <= last, "start", rule, Verbatim(f"{names[first]} and {names[last]}"))
    return tuple(stages[first : last + 1])


def sizes_by_stage(
    configs: tuple[StageConfig, ...], size: tuple[int, int] | None = None
) -> list[tuple[int, int]]:
    """(H, W) at every stage for a result of `size`; their own sizes if that is None."""
    size, last = check_size(size), configs[-1].image_size
    if size is None:
        return [(config.image_size,) * 2 for config in configs]
    sizes = []
    for config in configs:
        sides = [side * config.image_size / last for side in size]
        if not all(side > 0 and side % config.network.stride == 0 for side in sides):
            needed = max(c.network.stride * last // c.image_size for c in configs)
            rule = f"be (H, W) in multiples of {needed}, so that every stage gets multiples of its stride"
            raise error("size", rule, size)
        sizes.append(tuple(int(side) for side in sides))
    return sizes


def sampling_by_stage(
    stages: tuple[Stage, ...], options: dict[str, Any], weak: Sequence[Stage | None] | None = None
) -> list[SamplingConfig]:
    """Each stage's own settings with `options` put over them, checked; see `sample_cascade`."""
    is_row = lambda v: arrays.is_array(v) and v.ndim == 1 and arrays.known(v) is not None
    options = {name: v.tolist() if is_row(v) else plain(v) for name, v in options.items()}
    known = [field.name for field in dataclasses.fields(SamplingConfig)]
    unknown = sorted(set(options) - set(known))
    require(not unknown, "sampling options", f"be among {', '.join(known)}", Verbatim(", ".join(unknown)))
    for name, value in options.items():
        values = value if isinstance(value, tuple | list) else (value,)
        rule = f"be one value or one for each of the {len(stages)} stages"
        is_right = all(plain(v) is None or isinstance(plain(v), str | numbers.Real) for v in values)
        fix = "inside jax.jit close over it" if isinstance(value, jax.core.Tracer) else ""
        require(is_right, name, rule, value, fix)
        is_right = not isinstance(value, tuple | list) or len(value) == len(stages)
        require(is_right, name, rule, Verbatim(f"{len(values)} values"))
    settings = []
    for i, stage in enumerate(stages):
        own = {n: v[i] if isinstance(v, tuple | list) else v for n, v in options.items()}
        own = {name: value for name, value in own.items() if value is not None}
        if not stage.config.is_super_resolution:
            for name in set(own) & set(_SUPER_RESOLUTION):
                is_meant = isinstance(options[name], tuple | list) or len(stages) == 1
                rule = f"be left out (None) for stage {stage.config.name}, which has no low-res image"
                require(not is_meant, name, rule, own[name])
                del own[name]
        sampling = override(stage.config.sampling, own)
        is_weak_given = weak is not None and weak[i] is not None
        settings.append(validate_sampling(stage.config, sampling, needs_null=not is_weak_given))
    return settings


def _one_each(value: Any, stages: tuple[Stage, ...], name: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        rule = f"be a tuple of one or None for each of the {len(stages)} stages"
        require(value is None or len(stages) == 1, name, rule, value)
        return (value,) * len(stages)
    rule = f"be one or None for each of the {len(stages)} stages"
    require(len(value) == len(stages), name, rule, Verbatim(str(len(value))))
    return tuple(value)


def _at_size(image: jax.Array | None, size: tuple[int, int]) -> jax.ShapeDtypeStruct | None:
    """The shape of an image or a mask at another size."""
    if image is None:
        return None
    return jax.ShapeDtypeStruct((image.shape[0], *size, *image.shape[3:]), jnp.float32)


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
