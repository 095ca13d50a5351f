"""Progressive distillation: a student that minimises the objective samples what the teacher does in more steps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import stage
from imagen_jax.config import OBJECTIVES
from imagen_jax.training.objectives import progressive


def test_the_indices_are_uniform_and_in_range():
    t = jnp.asarray([0.0, 0.249, 0.25, 0.5, 0.999, 1 - 2**-24])
    np.testing.assert_array_equal(progressive.index(t, 4), [0, 0, 1, 2, 3, 3])


@pytest.mark.parametrize("substeps", [2, 3])
def test_the_student_does_in_a_step_what_the_teacher_does_in_some(teacher, student_of, batch, sampled, substeps):
    """The loss is a square in the student's factors, so that one step of Newton's method is at its minimum."""
    config = student_of("progressive", 2, substeps)
    draws = stage.draw(config, jax.random.key(1), len(batch["x"]))
    objective = OBJECTIVES["progressive"](config)
    params = stage.init(config, jax.random.key(0))
    loss_of = jax.jit(lambda table: objective({"table": table}, batch, draws, teacher)[0])
    learned = slice(0, None, substeps)  # the levels that the student samples on; the others have no loss
    table, gradient = params["table"], jax.grad(loss_of)(params["table"])
    assert not gradient[1::substeps].any()
    hessian = jax.hessian(lambda rows: loss_of(table.at[learned].set(rows)))(table[learned])
    side = table[learned].size
    change = np.linalg.lstsq(
        np.asarray(hessian, np.float64).reshape(side, side), -np.asarray(gradient[learned]).reshape(-1), rcond=1e-7
    )[0]
    table = table.at[learned].add(change.reshape(-1, 4).astype("float32"))
    assert float(loss_of(table)) < 1e-6 * float(loss_of(params["table"]))
    student = stage.Stage({"table": table}, config)
    of_teacher = sampled(teacher, sampler="ddim", steps=2 * substeps)
    np.testing.assert_allclose(sampled(student), of_teacher, atol=2e-4)
    assert float(jnp.abs(of_teacher - sampled(teacher, sampler="ddim", steps=2)).max()) > 0.02
