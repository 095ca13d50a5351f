"""Sampling one stage."""

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
from imagen_jax.diffusion import editing, guidance, process, samplers
from imagen_jax.diffusion.denoisers import Denoiser, then
from imagen_jax.sampling.inputs import (
    Inputs,
    check_inputs,
    check_pictures,
    check_request,
    check_size,
    with_former_names,
)
from imagen_jax.sampling.recipe import Recipe, Values, recipe_and_values
from imagen_jax.stage import Stage, condition_on_low_res, image_noise, named_key
from imagen_jax.structs import Cond, TextCond


@with_former_names
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
    control: jax.Array | None = None,
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
      negative: [B or 1] captions to steer away from, in place of the null caption. Must be given to a guided stage
        whose null caption is what the text encoder returns for the empty string, such as one of DeepFloyd IF.
      weights: one for each batch of text; they sum to 1.
      weak: a weaker stage to steer away from, in place of the null caption (autoguidance).
      image: [B, H, W, C] to start from (`sampling.strength` below 1) or to paint in (`mask`).
      mask: [B, H, W] or [B, H, W, 1]: 1 = paint here, 0 = keep the image.
      control: [B, H, W, C'] for a stage with control_channels.
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
    inputs = Inputs(low_res, negative, weak, image, mask, control, z_1)
    texts, weights = check_request(text, keys, weights, inputs)
    validate_sampling(config, sampling, needs_null=weak is None)
    check_pictures(inputs, keys.shape[0], size, has_strength=sampling.strength < 1)
    check_inputs(config, texts, keys, inputs, sampling, size)
    return_info, trajectory = checks.boolean("return_info", return_info), checks.boolean("trajectory", trajectory)
    is_function = callback is None or (callable(callback) and isinstance(callback, Hashable))
    require(is_function, "callback", "be a function of (step, x_hat) that has a hash", callback)
    rule = "come with return_info, which holds it"
    require(return_info or not trajectory, "trajectory", rule, Verbatim("return_info False"))
    recipe, values = recipe_and_values(
        config, sampling, size=size, weights=weights, trajectory=trajectory, callback=callback
    )
    x, info = run_stage(stage, texts, keys, inputs, recipe, values)
    raise_if_broken(stage.config, info)
    return (x, info) if return_info else x


def require_stage(name: str, value: Any) -> Stage:
    """Return `value`, if it is a Stage with a configuration; `name` is for messages."""
    require(isinstance(value, Stage), name, "be a Stage, as from load_stage", value)
    checks.instance(f"{name}.config", value.config, StageConfig, "a StageConfig")
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
    recipe: Recipe,
    values: Values,
) -> tuple[jax.Array, samplers.Info]:
    """Sample with arguments that have been checked, in one compiled call: (x [B, H, W, C], info)."""
    if inputs.mask is not None:
        inputs = inputs.replace(mask=inputs.mask.reshape(inputs.image.shape[:3] + (1,)))
    return _sample(stage, texts, keys, inputs, values, recipe=recipe)


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


@partial(jax.jit, static_argnames=("recipe",))
def _sample(
    stage: Stage, texts: tuple[TextCond, ...], keys: jax.Array, inputs: Inputs, values: Values, *, recipe: Recipe
) -> tuple[jax.Array, samplers.Info]:
    config, grid = stage.config, values.grid
    keys = jax.vmap(lambda key: named_key(key, config.name))(keys)
    cond = Cond(texts[0], control=inputs.control)
    if config.is_super_resolution:
        aug_level = jnp.broadcast_to(values.aug_level, (len(keys),))
        cond = condition_on_low_res(config, cond, inputs.low_res.astype(jnp.float32), aug_level, keys)
        cond = cond.replace(low_res_noised=sharding.constrain_images(cond.low_res_noised))
    denoise = denoiser(stage, cond, texts, inputs, recipe, values)
    z_1 = inputs.z_1
    if z_1 is None:
        z_1 = image_noise(keys, "z_1", (*recipe.size, config.image_channels))
    if recipe.starts_from_image:
        z_1 = process.diffuse(inputs.image.astype(jnp.float32), z_1, grid[0])
    elif inputs.mask is not None:  # a grid may start below pure noise: the known part is exact there too
        z_1 = editing.merge(z_1, process.diffuse(inputs.image.astype(jnp.float32), z_1, grid[0]), inputs.mask)
    x, info = samplers.sample(
        denoise,
        sharding.constrain_images(z_1),
        grid,
        sampler=recipe.sampler,
        keys=jax.vmap(lambda key: named_key(key, "sampler"))(keys),
        resample=recipe.resample,
        jump=recipe.jump,
        return_info=True,
        trajectory=recipe.trajectory,
        callback=recipe.callback,
    )
    if inputs.mask is not None:
        x = editing.merge(x, inputs.image, inputs.mask)
    x = jnp.clip(x, -1, 1)
    broken = process.expand(info.broken_at > 0, x)
    return jnp.where(broken, jnp.nan, x), info


def denoiser(
    stage: Stage, cond: Cond, texts: tuple[TextCond, ...], inputs: Inputs, recipe: Recipe, values: Values
) -> Denoiser:
    """Return the stage's network under guidance, thresholding and the mask.

    Args:
      stage, inputs, recipe, values: as of `run_stage`.
      cond: the condition, with the first of `texts`.
      texts: batches of captions; more than one with weights in the recipe.
    """

    def limit(x_hat: jax.Array) -> jax.Array:
        # Infinity is not to be clipped into range: the sampler looks for it.
        with jax.named_scope("thresholding"):  # its name in traces
            return recipe.threshold(jnp.where(jnp.isfinite(x_hat), x_hat, jnp.nan))

    options = {
        "rule": recipe.rule,
        "threshold": limit if recipe.threshold_at in ("before", "both") else None,
    }
    is_off = not recipe.is_guided
    scale = 1 if is_off else recipe.scale(values.guidance_scale, values.grid)
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
            stage.denoise, conds if recipe.weights else conds[0], null, scale, weights=recipe.weights, **options
        )
    if recipe.threshold_at in ("after", "both"):
        denoise = then(denoise, limit)
    if inputs.mask is not None:
        denoise = editing.inpainting(denoise, inputs.image, inputs.mask)
    return denoise


def _prepared(stage: Stage, conds: list[Cond]) -> list[Cond]:
    """`Stage.prepare` of each, in one batch."""
    together = stage.prepare(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conds))
    parts = jax.tree.map(lambda leaf: jnp.split(leaf, len(conds)), together)
    outer, inner = jax.tree.structure(together), jax.tree.structure([0] * len(conds))
    return jax.tree.transpose(outer, inner, parts)
