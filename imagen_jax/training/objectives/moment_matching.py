"""Distillation by moment matching: a student whose pictures have the teacher's moments, not its trajectories."""

from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax import stage
from imagen_jax.config import OBJECTIVES, StageConfig, override
from imagen_jax.diffusion import distillation, losses, process
from imagen_jax.diffusion.denoisers import as_estimate
from imagen_jax.sampling import one_stage
from imagen_jax.sampling.inputs import Inputs
from imagen_jax.sampling.recipe import logsnr_grid, recipe_and_values
from imagen_jax.structs import Cond
from imagen_jax.training.objectives.denoising import Metrics, mean_and_metrics
from imagen_jax.training.objectives.distillation import distils, teacher_denoiser, with_auxiliary
from imagen_jax.training.objectives.progressive import index


@OBJECTIVES.register("moment_matching")
@distils
@with_auxiliary
def moment_matching(config: StageConfig) -> Any:
    """Return the objective of moment matching (Salimans et al. 2024, arXiv 2406.04103, algorithm 2).

    The student's x at one of its levels is noised again, by the posterior of an ancestral step, to a cleaner level that
    the step spans, one of `distilled.substeps`. There an auxiliary network learns the mean of such x, and the student
    moves from that mean towards the teacher's. Steps that follow the teacher's trajectory with a squared error blur
    what that trajectory decides late; here the student is free in where it ends from which noise.

    Unlike in the paper, student and auxiliary network move in the same training step, from which the auxiliary's
    estimate serves both; the weight of the student's difference is that of DMD (Yin et al. 2024, arXiv 2311.18828,
    equation 8); what is learned are the levels that the student is sampled on alone; and the student begins a step
    where its own steps from noise have brought it (Yin et al. 2024, arXiv 2405.14867, section 4.5), so that a later
    step learns to mend what an earlier one leaves. Of a batch, captions and low-resolution images alone count.

    Metrics by log-SNR are the loss of the auxiliary network; "moment_gap" is the squared difference of the two means,
    weighted like it, which falls as the student learns.
    """
    made = config.distilled
    grid = logsnr_grid(config, override(config.sampling, {"steps": made.steps * made.substeps}))

    def objective(
        params: Any, batch: stage.Batch, draws: stage.Draws, teacher: stage.Stage, auxiliary: Any
    ) -> tuple[jax.Array, Metrics]:
        stage.check_batch(config, batch, draws)
        draws = draws.replace(dropped=jnp.zeros_like(draws.dropped))
        level = index(draws.t, made.steps * made.substeps)
        starts, step = grid[:: made.substeps], level // made.substeps
        logsnr_t, logsnr_s = starts[step], grid[level + 1]
        _, _, z_1, cond = stage.noised(config, batch, draws, jnp.full_like(logsnr_t, starts[0]))
        dropout = [stage.named_key(draws.keys[0], name) for name in ("dropout", "auxiliary dropout")]
        student, second = stage.Stage(params, config), stage.Stage(auxiliary, config)
        z_t = _reached(student, cond, z_1, starts, step)
        x = as_estimate(student.denoise(z_t, logsnr_t, cond, dropout[0])).x
        made_x = jax.lax.stop_gradient(x)
        mean, variance = process.posterior(z_t=z_t, x=made_x, logsnr_t=logsnr_t, logsnr_s=logsnr_s)
        z_s = mean + jnp.sqrt(variance) * stage.image_noise(draws.keys, "posterior", x.shape[1:])
        teach = teacher_denoiser(config, teacher, cond, batch.get("null"))
        x_teacher = jax.lax.stop_gradient(as_estimate(teach(z_s, logsnr_s)).x.astype(jnp.float32))
        x_auxiliary = as_estimate(second.denoise(z_s, logsnr_s, cond, dropout[1])).x
        weight = losses.v(logsnr_s, "x", config.process.v_cap)
        square = lambda difference: jnp.mean(difference**2, axis=(1, 2, 3))
        gap = weight * square(jax.lax.stop_gradient(x_auxiliary) - x_teacher)
        # The second term keeps it near the teacher, where few of the student's pictures have shown it anything yet.
        own = weight * (square(x_auxiliary - made_x) + square(x_auxiliary - x_teacher))
        loss, metrics = mean_and_metrics(own, logsnr_s)
        moved = jnp.mean(distillation.moved(x, x_teacher, x_auxiliary))
        return loss + moved, metrics | {"moment_gap": (jnp.sum(gap), jnp.asarray(len(gap), jnp.float32))}

    return objective


def _reached(student: stage.Stage, cond: Cond, z_1: jax.Array, starts: jax.Array, step: jax.Array) -> jax.Array:
    """Return z_t [B, H, W, C] where the student begins step `step` [B], as it is sampled from the noise z_1.

    Args:
      student: the stage that is trained.
      cond: of B captions.
      z_1: [B, H, W, C] where step 0 begins.
      starts: [N + 1] log-SNRs of the beginning of each of N steps, and of the end.
      step: [B] from 0 to N - 1.
    """
    recipe, values = recipe_and_values(student.config, student.config.sampling)
    denoise = one_stage.denoiser(jax.lax.stop_gradient(student), cond, (cond.text,), Inputs(), recipe, values)

    def move(z: jax.Array, logsnrs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return distillation.ddim(z, as_estimate(denoise(z, logsnrs[0])).x, *logsnrs), None

    # Where z_t is reached, both levels are equal, and a step of DDIM changes nothing.
    levels = jnp.minimum(starts[:-1, None], starts[step][None])
    z_t, _ = jax.lax.scan(move, z_1, (levels[:-1], levels[1:]))
    return z_t
