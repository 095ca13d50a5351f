"""Consistency distillation: its fixed point samples what the teacher does in all the steps between."""

import jax
import numpy as np
import pytest

from imagen_jax import stage
from imagen_jax.config import OBJECTIVES


@pytest.mark.slow
def test_the_fixed_point_samples_as_the_teacher_in_all_steps(teacher, student_of, batch, sampled):
    """With its own part held fixed, the loss is a square in the student's factors: each step of Newton's method makes
    the student right at one more level, from the end of each of its steps on."""
    config, substeps = student_of("consistency", 2, 3), 3
    draws = stage.draw(config, jax.random.key(1), len(batch["x"]))
    objective = OBJECTIVES["consistency"](config)
    table = stage.init(config, jax.random.key(0))["table"]
    value_and_grad = jax.jit(jax.value_and_grad(lambda table: objective({"table": table}, batch, draws, teacher)[0]))
    first, side = value_and_grad(table)[0], table.size
    # The student's part of the target has no derivative, in the second one either.
    gradient_of = jax.grad(lambda table: objective({"table": table}, batch, draws, teacher)[0])
    hessian = np.asarray(jax.jit(jax.jacfwd(gradient_of))(table), np.float64).reshape(side, side)
    for _ in range(substeps):
        gradient = np.asarray(value_and_grad(table)[1], np.float64).reshape(-1)
        change = np.linalg.lstsq(hessian, -gradient, rcond=1e-7)[0]
        table = table + change.reshape(-1, 4).astype("float32")
    assert float(value_and_grad(table)[0]) < 1e-6 * float(first)
    student = stage.Stage({"table": table}, config)
    np.testing.assert_allclose(sampled(student), sampled(teacher, sampler="ddim", steps=6), atol=5e-4)
