"""Moment matching: a student that minimises the objective makes pictures of the teacher's distribution."""

import dataclasses

import jax
import numpy as np
import pytest

from imagen_jax import sharding, stage
from imagen_jax.config import override
from imagen_jax.diffusion import schedules
from imagen_jax.training import packing
from imagen_jax.training import state as states
from imagen_jax.training.step import make_train_step
from tests.training.objectives.conftest import VAR, Linear

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
