"""Samplers against the closed form of Gaussian data, for which the exact denoiser is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import samplers, schedules

MEAN, VAR = 0.3, 0.25
COSINE = schedules.make("cosine")


def denoise(z_t, logsnr_t):
    """E[x | z_t] for x ~ N(MEAN, VAR)."""
    alpha, sigma = (a[:, None, None, None] for a in schedules.alpha_sigma(logsnr_t))
    return MEAN + alpha * VAR * (z_t - alpha * MEAN) / (alpha**2 * VAR + sigma**2)


def probability_flow(z_t, logsnr_t, logsnr_s):
    """Where the exact ODE takes z_t: its standardised value is constant. float64."""
    alpha = lambda logsnr: np.sqrt(1 / (1 + np.exp(-np.float64(logsnr))))
    std = lambda logsnr: np.sqrt(alpha(logsnr) ** 2 * VAR + 1 / (1 + np.exp(np.float64(logsnr))))
    return alpha(logsnr_s) * MEAN + std(logsnr_s) * (z_t - alpha(logsnr_t) * MEAN) / std(logsnr_t)


def error(sampler, grid):
    z_1 = jnp.linspace(-2, 2, 8).reshape(8, 1, 1, 1)
    exact = probability_flow(np.asarray(z_1, np.float64), float(grid[0]), float(grid[-1]))
    return np.abs(samplers.sample(denoise, z_1, grid, sampler=sampler) - exact).max()


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2)])
def test_order_of_convergence(sampler, order):
    """On equal steps of logsnr, halving the step divides the error by 2^order."""
    coarse, fine = (error(sampler, jnp.linspace(-8, 8, steps + 1)) for steps in (40, 80))
    assert coarse / fine == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize("name", ["cosine", "linear", "shifted_cosine"])
@pytest.mark.parametrize(("sampler", "bound"), [("ddim", 0.05), ("dpmpp_2m", 0.005)])
def test_schedules_reach_the_data(sampler, bound, name):
    grid = lambda steps: schedules.grid(schedules.make(name), steps)
    assert error(sampler, grid(64)) < bound
    assert error(sampler, grid(256)) < error(sampler, grid(64)) / 3


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_ddpm_reaches_the_mean_and_variance(gamma):
    num = 40_000
    keys = jax.random.split(jax.random.key(0), num)
    z_1 = samplers.normal(jax.random.split(jax.random.key(1), num), (1, 1, 1))
    x = samplers.sample(denoise, z_1, schedules.grid(COSINE, 250), sampler=samplers.ddpm(gamma), keys=keys)
    assert float(x.mean()) == pytest.approx(MEAN, abs=4 * (VAR / num) ** 0.5 + 0.002)
    assert float(x.var()) == pytest.approx(VAR, rel=0.06)


@pytest.mark.parametrize("sampler", list(samplers.SAMPLERS))
def test_an_image_does_not_depend_on_its_batch(sampler):
    keys = jax.random.split(jax.random.key(0), 5)
    z_1 = samplers.normal(keys, (4, 4, 3))
    grid = schedules.grid(COSINE, 8)
    together = samplers.sample(denoise, z_1, grid, sampler=sampler, keys=keys)
    alone = samplers.sample(denoise, z_1[3:4], grid, sampler=sampler, keys=keys[3:4])
    np.testing.assert_allclose(alone[0], together[3], atol=1e-6)


@pytest.mark.parametrize("sampler", list(samplers.SAMPLERS))
def test_a_known_image_is_reached_exactly(sampler):
    x = jnp.linspace(-1, 1, 48).reshape(1, 4, 4, 3)
    keys = jax.random.split(jax.random.key(0), 1)
    z_1 = samplers.normal(keys, (4, 4, 3))
    out = samplers.sample(lambda z, _: x, z_1, schedules.grid(COSINE, 5), sampler=sampler, keys=keys)
    np.testing.assert_allclose(out, x, atol=1e-3)


def test_stochastic_samplers_need_keys():
    with pytest.raises(ValueError, match="one for each image"):
        samplers.sample(denoise, jnp.zeros((1, 1, 1, 1)), schedules.grid(COSINE, 2), sampler="ddpm")


def test_unknown_sampler():
    with pytest.raises(ValueError, match="ddpm, ddim, dpmpp_2m; got 'euler'"):
        samplers.sample(denoise, jnp.zeros((1, 1, 1, 1)), schedules.grid(COSINE, 2), sampler="euler")
