"""Sampling one stage."""

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import arrays, checks, sharding
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import SamplingConfig, StageConfig
from imagen_jax.config.validation import validate_sampling
from imagen_jax.diffusion import (
    editing,
    guidance,
    process,
    samplers,
    schedules,
    thresholding,
)
from imagen_jax.sampling.inputs import Inputs, check_inputs, check_request, check_size
from imagen_jax.stage import Stage, condition_on_low_res, image_noise, named_key, schedule
from imagen_jax.structs import Cond, TextCond


def sample_stage(
    stage: Stage,
    text: TextCond | Sequence[TextCond],
    keys: jax.Array,
    *,
    low_res: jax.Array | None = None,
    sampling: SamplingConfig | None = None,
    negative: TextCond | None = None,
    weights: Sequence[float] | None = None,
    weak: Stage | None = None,
    image: jax.Array | None = None,
    mask: jax.Array | None = None,
    cond_image: jax.Array | None = None,
    z_1: jax.Array | None = None,
    size: tuple[int, int] | None = None,
    return_info: bool = False,
    trajectory: bool = False,
    callback: Callable[[jax.Array, jax.Array], None] | None = None,
) -> Any:
    """Samples one image per caption and key, in one compiled call.

    Args:
      stage: parameters (usually the averaged ones) and configuration.
      text: B encoded captions; or several such batches, whose estimates are averaged with `weights`.
      keys: [B], as from `image_keys`.
      low_res: [B, h, w, C] in [-1, 1] for a super-resolution stage, the size that its configuration says.
      sampling: replaces the options in the stage's configuration.
      negative: [B or 1] captions to steer away from, in place of the null caption.
      weights: one for each batch of text; they sum to 1.
      weak: a weaker stage to steer away from, in place of the null caption (autoguidance).
      image: [B, H, W, C] to start from (`sampling.strength` below 1) or to paint in (`mask`).
      mask: [B, H, W] or [B, H, W, 1]: 1 = paint here, 0 = keep the image.
      cond_image: [B, H, W, C'] for a stage with control_channels.
      z_1: [B, H, W, C] initial noise, standard normal, in place of that of the keys.
      size: (H, W) of the result, if not the stage's own; low_res is smaller by the stage's factor.
      return_info, trajectory, callback: see `samplers.sample`. The callback is static: another one compiles anew.

    Returns:
      [B, H, W, C] float32 in [-1, 1]; with return_info (that, `samplers.Info`).

    Raises:
      ValueError: an argument is of the wrong type, shape or range, or does not fit the stage; pictures are floats in
        [-1, 1]. Inside `jax.jit` values are not known, and not looked at.
      FloatingPointError: the network returned NaN or infinity; says at which step. Inside `jax.jit` nothing
        can be raised: such images are NaN.
    """
    config = check_params("stage", require_stage("stage", stage)).config
    if weak is not None:
        check_params("weak", require_stage("weak", weak))
    size = check_size(size) or (config.image_size,) * 2
    sampling = config.sampling if sampling is None else sampling
    inputs = Inputs(low_res, negative, weak, image, mask, cond_image, z_1)
    texts, weights = check_request(text, keys, weights, inputs)
    check_stage(config, texts, keys, inputs, sampling, size)
    return_info, trajectory = checks.boolean("return_info", return_info), checks.boolean("trajectory", trajectory)
    is_function = callback is None or (callable(callback) and isinstance(callback, Hashable))
    require(is_function, "callback", "be a function of (step, x_hat) that has a hash", callback)
    rule = "come with return_info, which holds it"
    require(return_info or not trajectory, "trajectory", rule, Verbatim("return_info False"))
    x, info = run_stage(stage, texts, keys, inputs, sampling, weights, size, trajectory, callback)
    raise_if_broken(stage.config, info)
    return (x, info) if return_info else x


def require_stage(name: str, value: Any) -> Stage:
    """Return `value`, if it is a Stage with a configuration; `name` is for messages."""
    is_stage = isinstance(value, Stage) and isinstance(value.config, StageConfig)
    require(is_stage, name, "be a Stage, as from load_stage", value)
    return value


def check_params(name: str, stage: Stage) -> Stage:
    """Return `stage`, if its parameters are a tree of arrays; whether of its network shows when that is called."""
    named, value = f"{name}.params", stage.params
    require(isinstance(value, Mapping), named, "be a dict of arrays, as from load_stage", value)
    arrays.leaves(named, value, "as from load_stage")
    return stage


def run_stage(
    stage: Stage,
    texts: tuple[TextCond, ...],
    keys: jax.Array,
    inputs: Inputs,
    sampling: SamplingConfig,
    weights: tuple[float, ...] | None,
    size: tuple[int, int],
    trajectory: bool = False,
    callback: Callable[[jax.Array, jax.Array], None] | None = None,
) -> tuple[jax.Array, samplers.Info]:
    """`sample_stage` for a caller that has called `check_stage` and looks for broken images itself: (x, info)."""
    if inputs.mask is not None:
        inputs = inputs.replace(mask=inputs.mask.reshape(inputs.image.shape[:3] + (1,)))
    values = {
        "guidance_scale": jnp.float32(sampling.guidance_scale),
        "aug_level": jnp.float32(sampling.aug_level),
    }
    # Compiled once for all scales, aug levels and grids of as many steps.
    fixed = dataclasses.replace(
        sampling, guidance_scale=0.0 if sampling.is_guided else 1.0, aug_level=0.0, schedule=None, spacing="t",
        sigma_min=None, sigma_max=None, rho=None, strength=1.0 if sampling.strength == 1 else 0.5,
    )  # fmt: skip
    return _sample(
        stage, texts, keys, inputs, logsnr_grid(stage.config, sampling), values, sampling=fixed, weights=weights,
        size=size, trajectory=trajectory, callback=callback,
    )  # fmt: skip


def check_stage(
    config: StageConfig,
    texts: Sequence[TextCond],
    keys: jax.Array,
    inputs: Inputs,
    sampling: SamplingConfig,
    size: tuple[int, int],
) -> None:
    """Raises a ValueError for anything that the stage cannot be sampled with; `inputs` may be mere shapes."""
    validate_sampling(config, sampling, needs_null=inputs.weak is None)
    check_inputs(config, texts, keys, inputs, sampling, size)
    logsnr_grid(config, sampling)
    _sampler(sampling)


def logsnr_grid(config: StageConfig, sampling: SamplingConfig) -> jax.Array:
    """The log-SNRs [T+1], noisiest first, on which a stage of `config` is sampled with the options `sampling`; T is in
    proportion to `strength`."""
    options = {name: getattr(sampling, name) for name in ("sigma_min", "sigma_max", "rho")}
    steps = max(1, round(sampling.steps * sampling.strength))
    with jax.ensure_compile_time_eval():
        grid = schedules.grid(
            schedule(config, sampling.schedule),
            steps,
            sampling.spacing,
            start=sampling.strength,
            **{name: value for name, value in options.items() if value is not None},
        )
        levels = np.asarray(grid)
    is_falling = bool((np.diff(levels) > 0).all())
    name, value = ("steps", sampling.steps) if levels[0] < levels[-1] else ("strength", sampling.strength)
    rule = "be larger, so that some noise is left at the start" if name == "strength" else "be fewer"
    what = f"schedule {sampling.schedule or config.process.schedule!r} and spacing {sampling.spacing!r}"
    require(is_falling, name, f"{rule} with {what}, whose levels of noise are equal in float32", value)
    return grid


def evaluations(config: StageConfig, sampling: SamplingConfig) -> int:
    """How many images go through the network of `config` for one result with the options `sampling`: two a guided step,
    twice as many with Heun."""
    grid = np.asarray(logsnr_grid(config, sampling))
    weight = np.full(len(grid), sampling.guidance_scale)
    with jax.ensure_compile_time_eval():
        scale = _scale(sampling, jnp.float32(sampling.guidance_scale), jnp.asarray(grid))
        weight = np.asarray(scale(jnp.asarray(grid))) if callable(scale) else weight
    images = np.where((weight != 1) | (sampling.guidance == "cfg++"), 2, 1)
    total = images[:-1].sum()
    total += images[1:][_sampler(sampling).corrected(grid)].sum()
    return int(total) * sampling.resample


def raise_if_broken(config: StageConfig, info: samplers.Info) -> None:
    """Raises a FloatingPointError that names the stage, the step and the images; inside jit it does nothing."""
    if isinstance(info.broken_at, jax.core.Tracer):
        return
    step, count, row = np.asarray(_summary(info.broken_at))
    if count:
        raise FloatingPointError(
            f"stage {config.name}: the network must return finite numbers; got NaN or infinity at step {step}, "
            f"in {count} of {len(info.broken_at)} images (the first is row {row}). Check that training has not "
            "diverged, or compute in float32 (compute_dtype)."
        )


@jax.jit
def _summary(broken_at: jax.Array) -> jax.Array:
    """[3] first step, number of images, first row: replicated, so that every process can read it."""
    is_broken = broken_at > 0
    first = jnp.min(jnp.where(is_broken, broken_at, jnp.iinfo(jnp.int32).max))
    return jnp.stack([first, jnp.sum(is_broken), jnp.argmax(is_broken)])


@partial(jax.jit, static_argnames=("sampling", "weights", "size", "trajectory", "callback"))
def _sample(
    stage: Stage,
    texts: tuple[TextCond, ...],
    keys: jax.Array,
    inputs: Inputs,
    grid: jax.Array,
    values: dict[str, jax.Array],
    *,
    sampling: SamplingConfig,
    weights: tuple[float, ...] | None,
    size: tuple[int, int],
    trajectory: bool,
    callback: Callable | None,
) -> tuple[jax.Array, samplers.Info]:
    config = stage.config
    keys = jax.vmap(lambda key: named_key(key, config.name))(keys)
    cond = Cond(texts[0], control=inputs.cond_image)
    if config.is_super_resolution:
        aug_level = jnp.broadcast_to(values["aug_level"], (len(keys),))
        cond = condition_on_low_res(config, cond, inputs.low_res.astype(jnp.float32), aug_level, keys)
        cond = cond.replace(low_res_noised=sharding.constrain_images(cond.low_res_noised))
    denoise = _denoiser(stage, cond, texts, inputs, grid, values["guidance_scale"], sampling, weights)
    z_1 = inputs.z_1
    if z_1 is None:
        z_1 = image_noise(keys, "z_1", (*size, config.image_channels))
    if sampling.strength < 1:
        z_1 = process.diffuse(inputs.image.astype(jnp.float32), z_1, grid[0])
    elif inputs.mask is not None:  # a grid may start below pure noise: the known part is exact there too
        z_1 = editing.merge(z_1, process.diffuse(inputs.image.astype(jnp.float32), z_1, grid[0]), inputs.mask)
    x, info = samplers.sample(
        denoise,
        sharding.constrain_images(z_1),
        grid,
        sampler=_sampler(sampling),
        keys=jax.vmap(lambda key: named_key(key, "sampler"))(keys),
        resample=sampling.resample,
        jump=sampling.jump,
        return_info=True,
        trajectory=trajectory,
        callback=callback,
    )
    if inputs.mask is not None:
        x = editing.merge(x, inputs.image, inputs.mask)
    x = jnp.clip(x, -1, 1)
    broken = process.expand(info.broken_at > 0, x)
    return jnp.where(broken, jnp.nan, x), info


def _denoiser(
    stage: Stage,
    cond: Cond,
    texts: tuple[TextCond, ...],
    inputs: Inputs,
    grid: jax.Array,
    guidance_scale: jax.Array,
    sampling: SamplingConfig,
    weights: tuple[float, ...] | None,
) -> guidance.Denoiser:
    """The stage's network under guidance, thresholding and the mask."""

    def limit(x_hat: jax.Array) -> jax.Array:
        # Infinity is not to be clipped into range: the sampler looks for it.
        return _threshold(sampling)(jnp.where(jnp.isfinite(x_hat), x_hat, jnp.nan))

    options = {
        "rule": _rule(sampling),
        "threshold": limit if sampling.threshold_at in ("before", "both") else None,
    }
    is_off = not sampling.is_guided
    scale = 1 if is_off else _scale(sampling, guidance_scale, grid)
    batch = len(cond.text.mask)
    conds = [cond.replace(text=text) for text in texts]
    if inputs.weak is not None:
        [own] = _prepared(stage, conds)
        [weaks] = _prepared(inputs.weak, conds)
        denoise = guidance.autoguidance(stage.denoise, inputs.weak.denoise, own, weaks, scale, **options)
    else:
        if is_off:
            null = None
        elif inputs.negative is None:
            null = cond.text.drop(jnp.ones((batch,), bool))
        else:
            null = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape[1:])), inputs.negative)
        conds = _prepared(stage, conds if is_off else [*conds, cond.replace(text=null)])
        null = conds[0] if is_off else conds.pop()
        denoise = guidance.classifier_free(
            stage.denoise, conds if weights else conds[0], null, scale, weights=weights, **options
        )
    if sampling.threshold_at in ("after", "both"):
        denoise = guidance.then(denoise, limit)
    if inputs.mask is not None:
        denoise = editing.inpainting(denoise, inputs.image, inputs.mask)
    return denoise


def _prepared(stage: Stage, conds: list[Cond]) -> list[Cond]:
    """`Stage.prepare` of each, in one batch."""
    together = stage.prepare(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conds))
    parts = jax.tree.map(lambda leaf: jnp.split(leaf, len(conds)), together)
    outer, inner = jax.tree.structure(together), jax.tree.structure([0] * len(conds))
    return jax.tree.transpose(outer, inner, parts)


def _sampler(sampling: SamplingConfig) -> samplers.Sampler:
    options = {"gamma": sampling.ddpm_gamma} | {
        name: getattr(sampling, name)
        for name in ("eta", "order", "churn", "churn_min", "churn_max", "churn_noise")
    }
    return samplers.make(sampling.sampler, **{k: v for k, v in options.items() if v is not None})


def _rule(sampling: SamplingConfig) -> guidance.Rule:
    if sampling.guidance == "cfg++":
        return guidance.plus_plus()
    rule = guidance.linear()
    if sampling.guidance == "apg":
        rule = guidance.projected(
            sampling.apg_parallel or 0.0, sampling.apg_norm, sampling.apg_momentum or 0.0
        )
    return guidance.rescaled(rule, sampling.guidance_rescale) if sampling.guidance_rescale else rule


def _scale(sampling: SamplingConfig, guidance_scale: jax.Array, grid: jax.Array) -> guidance.Scale:
    scale = guidance_scale
    if sampling.guidance_low is not None:
        scale = guidance.oscillating(scale, sampling.guidance_low, sampling.guidance_low_start or 0, grid)
    low, high = sampling.guidance_min_logsnr, sampling.guidance_max_logsnr
    if low is None and high is None:
        return scale
    return guidance.interval(scale, -np.inf if low is None else low, np.inf if high is None else high)


def _threshold(sampling: SamplingConfig) -> Callable[[jax.Array], jax.Array]:
    if sampling.threshold == "none":
        return lambda x_hat: x_hat
    if sampling.threshold == "static":
        return thresholding.static
    options = {name: getattr(sampling, name) for name in ("percentile", "floor", "cap")}
    return partial(thresholding.dynamic, **{k: v for k, v in options.items() if v is not None})
