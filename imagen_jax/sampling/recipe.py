"""How one stage is sampled: the static choices and the traced values that follow from checked options."""

import dataclasses
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checks import require
from imagen_jax.config import SamplingConfig, StageConfig
from imagen_jax.diffusion import guidance, samplers, schedules, thresholds
from imagen_jax.stage import schedule


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Static choices: each other one compiles another program. See `SamplingConfig` for those of its fields."""

    sampler: samplers.Sampler
    rule: guidance.Rule
    threshold: thresholds.Threshold
    threshold_at: str
    is_guided: bool
    guidance_min_logsnr: float | None
    guidance_max_logsnr: float | None
    guidance_low: float | None
    guidance_low_start: int | None
    resample: int
    jump: int
    starts_from_image: bool  # strength below 1
    size: tuple[int, int]  # (H, W) of the result
    weights: tuple[float, ...] | None  # of several texts
    trajectory: bool = False
    callback: Callable[[jax.Array, jax.Array], None] | None = None

    def scale(self, guidance_scale: jax.Array, grid: jax.Array) -> guidance.Scale:
        """Return the guidance scale, a function of logsnr_t [B] if it depends on the level of noise."""
        scale = guidance_scale
        if self.guidance_low is not None:
            scale = guidance.oscillating(scale, self.guidance_low, self.guidance_low_start or 0, grid)
        low, high = self.guidance_min_logsnr, self.guidance_max_logsnr
        if low is None and high is None:
            return scale
        return guidance.interval(scale, -np.inf if low is None else low, np.inf if high is None else high)


@flax.struct.dataclass
class Values:
    """Traced values: one program serves all of them, with grids of as many steps."""

    guidance_scale: jax.Array  # scalar
    aug_level: jax.Array  # scalar
    grid: jax.Array  # [T+1] logsnr


def recipe_and_values(
    config: StageConfig,
    sampling: SamplingConfig,
    *,
    size: tuple[int, int] | None = None,
    weights: tuple[float, ...] | None = None,
    trajectory: bool = False,
    callback: Callable[[jax.Array, jax.Array], None] | None = None,
) -> tuple[Recipe, Values]:
    """Return what `sampling`, checked by `validate_sampling`, means for a stage of `config`.

    Args:
      config: of the stage.
      sampling: its options.
      size: (H, W) of the result; None: the stage's own.
      weights: of several texts.
      trajectory, callback: see `sample_stage`.

    Raises:
      ValueError: levels of noise are equal in float32; see `logsnr_grid`.
    """
    rule = sampling.method("guidance")
    if sampling.guidance_rescale:
        rule = guidance.Rescaled(rule, sampling.guidance_rescale)
    same = ("threshold_at", "is_guided", "guidance_min_logsnr", "guidance_max_logsnr", "guidance_low")
    recipe = Recipe(
        sampler=sampling.method("sampler"),
        rule=rule,
        threshold=sampling.method("threshold"),
        **{name: getattr(sampling, name) for name in (*same, "guidance_low_start", "resample", "jump")},
        starts_from_image=sampling.strength < 1,
        size=size or (config.image_size,) * 2,
        weights=weights,
        trajectory=trajectory,
        callback=callback,
    )
    grid = logsnr_grid(config, sampling)
    return recipe, Values(jnp.float32(sampling.guidance_scale), jnp.float32(sampling.aug_level), grid)


def logsnr_grid(config: StageConfig, sampling: SamplingConfig) -> jax.Array:
    """Return the log-SNRs [T+1], noisiest first, on which a stage of `config` is sampled with the options `sampling`.

    T counts the steps that the spacing has from `strength` on: in proportion to it, except where a list gives them.

    Raises:
      ValueError: levels of noise are equal in float32.
    """
    steps = sampling.method("spacing").steps_from(sampling.steps, sampling.strength)
    with jax.ensure_compile_time_eval():
        of_stage, spacing = schedule(config, sampling.schedule), sampling.method("spacing")
        grid = schedules.unchecked_grid(of_stage, steps, spacing, sampling.strength)
        levels = np.asarray(grid)
    is_falling = bool((np.diff(levels) > 0).all())
    name, value = ("steps", sampling.steps) if levels[0] < levels[-1] else ("strength", sampling.strength)
    rule = "be larger, so that some noise is left at the start" if name == "strength" else "be fewer"
    what = f"schedule {sampling.schedule or config.process.schedule!r} and spacing {sampling.spacing!r}"
    require(is_falling, name, f"{rule} with {what}, whose levels of noise are equal in float32", value)
    return grid


def evaluations(config: StageConfig, sampling: SamplingConfig) -> int:
    """Return how many images go through the network of `config` for one result with the options `sampling`.

    Two for a guided step, as many again where the sampler evaluates the model a second time, and the final estimate.
    """
    recipe, values = recipe_and_values(config, sampling)
    grid, sampler = np.asarray(values.grid), recipe.sampler
    levels = np.append(grid, [sampler.final_logsnr] if sampler.has_final else []).astype(np.float32)
    weight = np.full(len(levels), sampling.guidance_scale)
    with jax.ensure_compile_time_eval():
        scale = recipe.scale(values.guidance_scale, values.grid)
        weight = np.asarray(scale(jnp.asarray(levels))) if callable(scale) else weight
    images = np.where((weight != 1) | (not recipe.rule.is_off_at_one), 2, 1)
    on_grid, after = np.split(images, [len(grid)])
    total = on_grid[:-1].sum() + on_grid[1:][sampler.corrected(grid)].sum()
    return int(total) * sampling.resample + int(after.sum())
