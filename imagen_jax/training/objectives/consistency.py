"""Multistep consistency distillation: a student of few steps in one run."""

from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.config import OBJECTIVES, StageConfig
from imagen_jax.diffusion import distillation
from imagen_jax.training.objectives.distillation import distils, make_objective
from imagen_jax.training.objectives.progressive import index


@OBJECTIVES.register("consistency")
@distils
def consistency(config: StageConfig) -> Any:
    """Return the objective of multistep consistency distillation (Heek et al. 2024, arXiv 2403.06807, algorithm 1).

    From each of the levels within a step of the student, its x ends where a step of the teacher to the next level, and
    from there one of the student itself, ends. The student's part has no gradient, and has the parameters of this
    training step, not their average. Unlike in the paper, `distilled.substeps` is constant over a run and the
    teacher's step is plain DDIM; the paper's number of levels over all steps rises from 64 to 1280.

    Why this method. Progressive distillation to N steps from 64 is log2(64 / N) runs, whose errors add up; this is one
    run for any N from the original teacher, which is evaluated once in a training step, however many substeps there
    are. The paper reports Fréchet distances of 1.4 on ImageNet at 64 pixels and of 2.1 at 128, in 8 steps;
    `moment_matching` does better (1.24 and 1.49), at the cost of a second network. Shortcut models (Frans et al. 2024,
    arXiv 2410.12557) give the network the length of its step as a further input, so that a trained stage cannot be the
    initial parameters as it is. sCM (Lu & Song 2024, arXiv 2410.11081) takes forward-mode derivatives of the network,
    which custom kernels may not have.
    """
    made = config.distilled

    def levels_of(grid: jax.Array, t: jax.Array) -> jax.Array:
        first = index(t, made.steps * made.substeps)
        end = (first // made.substeps + 1) * made.substeps
        return grid[jnp.stack([first, first + 1, end])]

    return make_objective(config, levels_of, distillation.consistent)
