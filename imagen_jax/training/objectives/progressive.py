"""Progressive distillation: one step learns what some steps of the teacher do."""

from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.config import OBJECTIVES, StageConfig
from imagen_jax.diffusion import distillation
from imagen_jax.training.objectives.distillation import distils, make_objective


@OBJECTIVES.register("progressive")
@distils
def progressive(config: StageConfig) -> Any:
    """Return the objective of progressive distillation (Salimans & Ho 2022, algorithm 2).

    A step of the student, drawn uniformly, has the x that ends where `distilled.substeps` steps of the teacher end.
    With two, each run halves the steps; its student is the teacher and the initial parameters of the next run. The
    teacher is evaluated at each of its steps, which costs two forward passes when it is guided.
    """
    made = config.distilled

    def levels_of(grid: jax.Array, t: jax.Array) -> jax.Array:
        first = index(t, made.steps) * made.substeps
        return grid[first[None] + jnp.arange(made.substeps + 1)[:, None]]

    def target(teacher: Any, student: Any, z_t: jax.Array, levels: jax.Array) -> jax.Array:
        return distillation.joined(teacher, z_t, levels)[0]

    return make_objective(config, levels_of, target)


def index(t: jax.Array, num: int) -> jax.Array:
    """Return for t [B], uniform in [0, 1), whole numbers [B] that are uniform in 0, 1, ..., num - 1."""
    return jnp.minimum((t * num).astype(jnp.int32), num - 1)
