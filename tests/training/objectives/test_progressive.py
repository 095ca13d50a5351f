"""Progressive distillation: a student that minimises the objective samples what the teacher does in more steps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import sharding, stage
from imagen_jax.config import OBJECTIVES, DistilledConfig, distilled
from imagen_jax.training import state as states
from imagen_jax.training.objectives import progressive
from imagen_jax.training.step import make_train_step


def test_the_indices_are_uniform_and_in_range():
    t = jnp.asarray([0.0, 0.249, 0.25, 0.5, 0.999, 1 - 2**-24])
    np.testing.assert_array_equal(progressive.index(t, 4), [0, 0, 1, 2, 3, 3])


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_super_resolution_u_net_learns_from_its_teacher(tiny_stages, tiny_batch):
    teacher = tiny_stages[1]
    optim = dataclasses.replace(teacher.config.optim, objective="progressive", teacher="elsewhere")
    config = dataclasses.replace(teacher.config, distilled=DistilledConfig(2, guidance_scale=3.0), optim=optim)
    config, mesh = distilled.with_sampling(config), sharding.make_mesh(devices=jax.devices()[:1])
    step = jax.jit(make_train_step(config, mesh), donate_argnums=0)
    state, losses = states.init_state(config, states.abstract_state(config, mesh)), []
    for _ in range(40):
        state, metrics = step(state, tiny_batch, teacher)
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
