"""Preservation: pictures of before teach what the teacher predicts, not what they show."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import stage
from imagen_jax.diffusion import losses
from imagen_jax.training.objectives import OBJECTIVES
from tests.training.objectives.conftest import NUM, Linear

PRIOR = slice(1, None, 2)


@pytest.fixture(params=["x", "v"])
def learner(request, teacher):
    """(configuration, parameters, random choices) of a stage whose network is linear and the same at all levels."""
    config = dataclasses.replace(
        teacher.config,
        network=Linear((0.0,)),
        process=dataclasses.replace(teacher.config.process, prediction=request.param, loss_weight="v"),
    )
    draws = stage.draw(config, jax.random.key(3), NUM)
    return config, stage.init(config, jax.random.key(1)), draws.replace(t=0.1 + 0.8 * draws.t)


def run(config, params, batch, draws, teacher):
    objective = OBJECTIVES["preservation"](config)
    function = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, metrics), gradient = function(params, batch, draws, teacher)
    return float(loss), {name: np.asarray(value) for name, value in metrics.items()}, gradient


def test_targets_are_the_pictures_and_the_teachers_estimates(learner, batch, teacher):
    """In closed form, with dropped captions and other weights: the loss is that of v, which is known of both.

    Captions of the own pictures are never dropped.
    """
    config, params, draws = learner
    draws = draws.replace(dropped=jnp.arange(NUM) < 6)
    weight = np.where(np.arange(NUM) % 2, 3.0, 1.0).astype("float32")
    loss, metrics, _ = run(config, params, batch | {"weight": weight}, draws, teacher)

    logsnr = stage.schedule(config).logsnr(draws.t)
    is_prior = np.arange(NUM) % 2 == 1
    x, _, z_t, cond = stage.noised(config, batch, draws.replace(dropped=draws.dropped & is_prior), logsnr)
    target = np.where(is_prior[:, None, None, None], teacher.denoise(z_t, logsnr, cond), x)
    x_hat = stage.Stage(params, config).denoise(z_t, logsnr, cond)
    per_image = np.asarray(losses.v(logsnr, "x", config.process.v_cap)) * np.mean((x_hat - target) ** 2, axis=(1, 2, 3))
    np.testing.assert_allclose(loss, np.mean(weight * per_image), rtol=1e-5)
    np.testing.assert_allclose(metrics["preservation"], [per_image[PRIOR].sum(), NUM / 2], rtol=1e-5)
    sums = [value[0] for name, value in metrics.items() if name.startswith("loss_logsnr/")]
    np.testing.assert_allclose(sum(sums), per_image.sum(), rtol=1e-5)


def test_nothing_pulls_at_a_network_that_is_as_before(batch, teacher):
    """Whatever the pictures show; those of the own data set pull."""
    for own, is_still in ((0.0, True), (1.0, False)):
        params = stage.init(teacher.config, jax.random.key(0))
        weight = np.where(np.arange(NUM) % 2, 1.0, own).astype("float32")
        draws = stage.draw(teacher.config, jax.random.key(3), NUM)
        loss, metrics, _ = run(teacher.config, params, batch | {"weight": weight}, draws, teacher)
        assert metrics["preservation"][0] < 1e-9
        assert (loss < 1e-9) == is_still


def test_pictures_of_before_need_no_weight(learner, batch, teacher):
    config, params, draws = learner
    weighted = batch | {"weight": np.ones(NUM, "float32")}
    plain, same = (run(config, params, rows, draws, teacher)[0] for rows in (batch, weighted))
    assert plain == same


def test_the_gradient_is_of_the_network_alone(learner, batch, teacher):
    """Finite differences of the loss along the gradient, in which the targets stand still."""
    config, params, draws = learner
    loss, _, gradient = run(config, params, batch, draws, teacher)
    norm = sum(float(jnp.sum(leaf**2)) for leaf in jax.tree.leaves(gradient))
    moved = jax.tree.map(lambda value, slope: value + 1e-3 * slope, params, gradient)
    other = jax.tree.map(lambda value, slope: value - 1e-3 * slope, params, gradient)
    difference = run(config, moved, batch, draws, teacher)[0] - run(config, other, batch, draws, teacher)[0]
    assert difference / 2e-3 == pytest.approx(norm, rel=2e-3)
