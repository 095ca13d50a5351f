"""What a student is taught: the teacher's guided, thresholded estimates, at every caption."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import config as C
from imagen_jax import sharding, stage
from imagen_jax.config import OBJECTIVES
from imagen_jax.structs import Cond, TextCond
from imagen_jax.training import state as states
from imagen_jax.training.objectives import distillation
from imagen_jax.training.step import make_train_step


@pytest.mark.slow
def test_the_teacher_is_guided_and_thresholded_as_it_is_sampled(teacher, student_of, batch):
    config = dataclasses.replace(
        teacher.config, low_res_size=None, sampling=C.override(teacher.config.sampling, {"threshold": "static"})
    )
    teacher, student = stage.Stage(teacher.params, config), student_of("progressive", 2, 2)
    text = TextCond(jnp.asarray(batch["text"]), jnp.asarray(batch["text_mask"]))
    z_t, logsnr_t = jnp.asarray(batch["x"]) * 4, jnp.full(len(batch["x"]), -1.0)
    found = distillation.teacher_denoiser(student, teacher, Cond(text))(z_t, logsnr_t)
    cond, null = (
        teacher.denoise(z_t, logsnr_t, Cond(each)) for each in (text, text.drop(jnp.ones(len(z_t), bool)))
    )
    np.testing.assert_allclose(found, jnp.clip(2 * cond - null, -1, 1), atol=1e-5)
    assert float(jnp.abs(2 * cond - null).max()) > 1
    # A student that is the teacher of the next is neither guided again nor by other options.
    same = {"network": config.network, "process": config.process, "low_res_size": None}
    again = stage.Stage(teacher.params, dataclasses.replace(student, **same))
    found = distillation.teacher_denoiser(student, again, Cond(text))(z_t, logsnr_t)
    np.testing.assert_allclose(found, cond, atol=1e-6)
    assert distillation.own_scale(again.config) == 2.0


@pytest.mark.slow
def test_no_caption_is_dropped(teacher, student_of, batch):
    config = student_of("progressive", 2, 2)
    objective, draws = OBJECTIVES["progressive"](config), stage.draw(config, jax.random.key(1), len(batch["x"]))
    params = stage.init(config, jax.random.key(0))
    losses = [
        float(objective(params, batch, draws.replace(dropped=jnp.full(len(batch["x"]), dropped)), teacher)[0])
        for dropped in (False, True)
    ]
    assert losses[0] == losses[1] > 0


@pytest.mark.slow
def test_the_train_step_lowers_the_loss(teacher, student_of, batch):
    """And leaves the teacher as it is; also with the batch in parts."""
    config = student_of("consistency", 2, 2)
    parts = dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulation=2))
    mesh, found = sharding.make_mesh(devices=jax.devices()[:1]), {}
    for name, each in {"whole": config, "parts": parts}.items():
        step = jax.jit(make_train_step(each, mesh), donate_argnums=0)
        state, losses = states.init_state(each, states.abstract_state(each, mesh)), []
        for _ in range(60 if name == "whole" else 1):
            state, metrics = step(state, batch, teacher)
            losses.append(float(metrics["loss"]))
        found[name] = losses
    np.testing.assert_allclose(found["parts"][0], found["whole"][0], rtol=1e-5)
    assert np.mean(found["whole"][-5:]) < 0.5 * np.mean(found["whole"][:5])
    assert float(teacher.params["unused"][0]) == 0
