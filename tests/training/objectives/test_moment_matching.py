"""Moment matching: a student that minimises the objective makes pictures of the teacher's distribution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import sharding, stage
from imagen_jax.config import override
from imagen_jax.diffusion import schedules
from imagen_jax.training import packing
from imagen_jax.training import state as states
from imagen_jax.training.objectives import moment_matching
from imagen_jax.training.step import make_train_step
from tests.training.objectives.conftest import NUM, VAR, Linear

MESH = sharding.make_mesh(devices=jax.devices()[:1])


@pytest.fixture
def unguided(teacher, student_of):
    """(teacher, configuration of a student of one step), neither guided: the teacher's pictures are then N(m, VAR)."""
    config = student_of("moment_matching", 1, 8)
    levels = tuple(np.asarray(schedules.grid(schedules.make("cosine"), 8), float))  # a row for each, and for the end
    config = dataclasses.replace(
        config,
        network=Linear(levels),
        distilled=dataclasses.replace(config.distilled, guidance_scale=1.0),
        optim=dataclasses.replace(config.optim, b1=0.0, b2=0.99, decay_steps=1500),
    )
    sampling = override(teacher.config.sampling, {"guidance_scale": 1.0})
    return stage.Stage(teacher.params, dataclasses.replace(teacher.config, sampling=sampling)), config


@pytest.mark.slow
def test_one_step_makes_the_teachers_distribution_from_noise(unguided, batch):
    """In closed form: x = sqrt(VAR) z + m is what one step from noise z to N(m, VAR) can be, besides its mirror."""
    teacher, config = unguided
    step = jax.jit(make_train_step(config, MESH), donate_argnums=0)
    state, gaps = states.init_state(config, states.abstract_state(config, MESH)), []
    for _ in range(1500):
        state, metrics = step(state, batch, teacher)
        total, count = metrics["sums"]["moment_gap"]
        gaps.append(float(total / count))
    noise, caption, low_res, one = np.asarray(packing.unpack_arrays(state).params["table"])[0]
    assert abs(noise) == pytest.approx(VAR**0.5, abs=0.02)
    assert caption == pytest.approx(0.3, abs=0.02)
    if config.is_super_resolution:
        assert low_res == pytest.approx(0.2, abs=0.02)
    assert abs(one) < 0.02
    assert np.mean(gaps[-50:]) < 0.02 * np.mean(gaps[:10])


def test_a_step_begins_where_the_students_own_steps_lead_from_noise(student_of, batch):
    """In closed form: with x_hat = a_i z in step i, DDIM (Song et al. 2020, equation 12) multiplies z by a factor."""
    config = student_of("moment_matching", 4, 2)
    draws = stage.draw(config, jax.random.key(0), NUM)
    starts = schedules.grid(schedules.make("cosine"), 8)[::2]
    _, _, z_1, cond = stage.noised(config, batch, draws, jnp.full(NUM, starts[0]))
    a = np.array([0.3, -0.4, 0.5, 0.6])
    table = jnp.zeros((8, 4)).at[::2, 0].set(a)
    step = jnp.arange(NUM) % 4

    def reached(table):
        return moment_matching._reached(stage.Stage({"table": table}, config), cond, z_1, starts, step)

    alpha, sigma = (np.sqrt(1 / (1 + np.exp(sign * np.asarray(starts, np.float64)))) for sign in (-1, 1))
    factors = np.cumprod([1, *(alpha[1:4] * a[:3] + sigma[1:4] / sigma[:3] * (1 - alpha[:3] * a[:3]))])
    exact = factors[np.asarray(step)][:, None, None, None] * np.asarray(z_1, np.float64)
    np.testing.assert_allclose(jax.jit(reached)(table), exact, rtol=1e-4, atol=1e-5)
    assert not np.any(jax.grad(lambda table: jnp.sum(reached(table)))(table))
