"""What objectives that distil a teacher have in common.

The student learns the x of DDIM steps on the grid that it is sampled on, `distilled.steps` equal steps of time. The
teacher's estimates on the grid with `distilled.substeps` times as many steps are guided and thresholded as it is
sampled, so that the student needs no guidance (Meng et al. 2023, arXiv 2210.03142, with one fixed weight). No caption
is dropped.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax import stage
from imagen_jax.config import SamplingConfig, StageConfig, override
from imagen_jax.diffusion import losses
from imagen_jax.diffusion.denoisers import DenoiseFn, Denoiser, as_estimate
from imagen_jax.sampling import one_stage
from imagen_jax.sampling.inputs import Inputs
from imagen_jax.sampling.recipe import logsnr_grid, recipe_and_values
from imagen_jax.structs import Cond, TextCond
from imagen_jax.training.objectives.denoising import Metrics, mean_and_metrics

# (fine grid [N M + 1] of log-SNRs, t [B] uniform in [0, 1)) -> levels [K+1, B] of the step to learn, noisiest first.
Levels = Callable[[jax.Array, jax.Array], jax.Array]
# (teacher, student, z_t at the first level, levels) -> x [B, H, W, C] that the student's x_hat shall be.
Target = Callable[[DenoiseFn, DenoiseFn, jax.Array, jax.Array], jax.Array]


def taught(objective: Callable) -> Callable:
    """Mark an objective to register as one that learns from a teacher, a `stage.Stage`; see `objectives`."""
    objective.needs_teacher = True
    return objective


def distils(objective: Callable) -> Callable:
    """Mark an objective to register as one that is `taught` to sample in `distilled.steps`; see `objectives`."""
    objective.needs_steps = True
    return taught(objective)


def with_auxiliary(objective: Callable) -> Callable:
    """Mark an objective to register as one that trains a second network beside the stage's; see `objectives`."""
    objective.has_auxiliary = True
    return objective


def own_scale(teacher: StageConfig) -> float:
    """Return the guidance scale that a student takes from its teacher: built in, or of its sampling options."""
    built_in = teacher.distilled.guidance_scale if teacher.distilled.steps else None
    return teacher.sampling.guidance_scale if built_in is None else built_in


def teacher_sampling(config: StageConfig, teacher: StageConfig) -> SamplingConfig:
    """Return the options by which the teacher's estimates are guided and thresholded.

    Args:
      config: of the student; `distilled.guidance_scale` is set, and has no effect on a teacher that is distilled.
      teacher: its configuration.
    """
    if teacher.distilled.steps:
        return teacher.sampling
    return override(teacher.sampling, {"guidance_scale": config.distilled.guidance_scale})


def teacher_denoiser(
    config: StageConfig, teacher: stage.Stage, cond: Cond, null: TextCond | None = None
) -> Denoiser:
    """Return the teacher's guided and thresholded denoiser: (z_t [B, H, W, C], logsnr_t [B]) -> x_hat.

    `null` [1] is the null caption of guidance, if it is not zeros.
    """
    recipe, values = recipe_and_values(teacher.config, teacher_sampling(config, teacher.config))
    return one_stage.denoiser(teacher, cond, (cond.text,), Inputs(negative=null), recipe, values)


def make_objective(config: StageConfig, levels_of: Levels, target: Target) -> Any:
    """Return objective(params, batch, draws, teacher): the error of the student's x_hat, as in training otherwise.

    The weight on the mean squared error of x is SNR + 1, at most `process.v_cap` (Salimans & Ho 2022, section 4): noise
    alone, where the first step begins, counts as much as other levels.
    """
    made = config.distilled
    grid = logsnr_grid(config, override(config.sampling, {"steps": made.steps * made.substeps}))

    def objective(
        params: Any, batch: stage.Batch, draws: stage.Draws, teacher: stage.Stage
    ) -> tuple[jax.Array, Metrics]:
        stage.check_batch(config, batch, draws)
        draws = draws.replace(dropped=jnp.zeros_like(draws.dropped))
        levels = levels_of(grid, draws.t)
        _, _, z_t, cond = stage.noised(config, batch, draws, levels[0])
        student = stage.Stage(params, config)
        x = jax.lax.stop_gradient(
            target(
                teacher_denoiser(config, teacher, cond, batch.get("null")),
                lambda z_t, logsnr_t: student.denoise(z_t, logsnr_t, cond),
                z_t,
                levels,
            )
        )
        dropout = stage.named_key(draws.keys[0], "dropout")
        x_hat = as_estimate(student.denoise(z_t, levels[0], cond, dropout)).x
        weight = losses.v(levels[0], "x", config.process.v_cap)
        error = jnp.mean((x_hat - x) ** 2, axis=(1, 2, 3))
        return mean_and_metrics(weight * error, levels[0])

    return objective
