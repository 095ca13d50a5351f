"""Samplers against closed forms: Gaussian data, whose exact denoiser is known, and mixtures of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import process, samplers, schedules
from tests.conftest import GOLDENS
from tests.diffusion.gaussian import (
    ALL,
    COSINE,
    DETERMINISTIC,
    MEAN,
    STOCHASTIC,
    VAR,
    WithNoise,
    alpha64,
    denoise,
    error,
    many,
)

# --- order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_of_convergence(name):
    """On equal steps of logsnr, halving the step divides the error by 2^order."""
    sampler, order = DETERMINISTIC[name]
    coarse, fine = (error(sampler, jnp.linspace(-6, 6, steps + 1)) for steps in (20, 40))
    ratio = coarse / fine
    if order == 3:  # between start and end, which are of lower order, and the float32 floor
        assert ratio > 6
    else:
        assert ratio == pytest.approx(2**order, rel=0.17)


DIM = 3


@pytest.fixture(scope="module")
def gaussian():
    """Mean and full covariance of a Gaussian in DIM correlated values, and its exact denoiser."""
    rng = np.random.default_rng(0)
    factor = rng.normal(0, 0.4, (DIM, DIM))
    mean, covariance = rng.normal(0, 0.4, DIM), factor @ factor.T + 0.02 * np.eye(DIM)

    def denoise_full(z_t, logsnr_t):
        alpha, sigma = schedules.alpha_sigma(logsnr_t[0])
        gain = alpha * covariance @ jnp.linalg.inv(alpha**2 * covariance + sigma**2 * jnp.eye(DIM))
        z = z_t.reshape(-1, DIM)
        return (mean[None, :] + (z - alpha * mean[None, :]) @ gain.T).reshape(z_t.shape)

    return mean, covariance, denoise_full


def affine_map(sampler, denoise_full, grid, dtype=jnp.float32):
    """A deterministic sampler of a Gaussian is affine in z_1: its offset [DIM] and matrix [DIM, DIM]."""
    probes = jnp.concatenate([jnp.zeros((1, DIM)), jnp.eye(DIM)]).reshape(-1, 1, 1, DIM)
    low = lambda z_t, logsnr_t: denoise_full(z_t.astype(dtype), logsnr_t).astype(dtype)
    out = np.asarray(samplers.sample(low, probes, grid, sampler=sampler), np.float64).reshape(-1, DIM)
    return out[0], (out[1:] - out[0]).T


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_mean_and_full_covariance_converge_with_the_order(name, gaussian):
    """No sampling noise: the moments are read off the affine map that the sampler is."""
    sampler, order = DETERMINISTIC[name]
    mean, covariance, denoise_full = gaussian
    grid = lambda steps: jnp.linspace(-10, 10, steps + 1)
    alpha, sigma2 = alpha64(10), 1 / (1 + np.exp(10.0))

    def deviation(steps):
        offset, matrix = affine_map(sampler, denoise_full, grid(steps))
        start = alpha64(-10) ** 2 * covariance + np.eye(DIM) / (1 + np.exp(-10.0))
        offset = offset + matrix @ (alpha64(-10) * mean)
        return max(
            np.abs(offset - alpha * mean).max(),
            np.abs(matrix @ start @ matrix.T - alpha**2 * covariance - sigma2 * np.eye(DIM)).max(),
        )

    coarse, fine = deviation(40), deviation(80)
    assert coarse / fine > 2**order * 0.8 and fine < 0.06


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_bfloat16_estimates_are_sane(name, gaussian):
    mean, covariance, denoise_full = gaussian
    grid = schedules.grid(COSINE, 32)
    offset, matrix = affine_map(DETERMINISTIC[name][0], denoise_full, grid, jnp.bfloat16)
    np.testing.assert_allclose(offset, mean, atol=0.05)
    np.testing.assert_allclose(matrix @ matrix.T, covariance, atol=0.05)


ENDS = jnp.linspace(-2, 2, 8).reshape(8, 1, 1, 1)
reached = jax.jit(
    lambda grid, sampler: samplers.sample(denoise, ENDS, grid, sampler=sampler), static_argnames="sampler"
)


@pytest.mark.parametrize("name", ["cosine", "linear", "shifted_cosine", "sigmoid", "edm"])
@pytest.mark.parametrize(("sampler", "bound"), [("ddim", 0.05), ("dpmpp_2m", 0.01), ("unipc", 0.01)])
@pytest.mark.parametrize("is_stretched", [False, True])
def test_schedules_reach_the_data(sampler, bound, name, is_stretched):
    schedule = schedules.make(name)
    schedule = schedules.zero_terminal(schedule) if is_stretched else schedule
    exact = MEAN + np.sqrt(VAR) * ENDS
    off = lambda steps: np.abs(reached(schedules.grid(schedule, steps), sampler=sampler) - exact).max()
    assert off(64) < bound * (4 if name == "linear" else 1) and off(256) < bound


def moments(sampler, steps):
    """Mean and variance of what a stochastic sampler makes of the Gaussian, free of sampling noise.

    z at the end is affine in z at the start and in the noise of every step: its variance is the sum of the
    squared derivatives, times the variance at the start.
    """
    grid = jnp.linspace(-8, 14, steps + 1)

    def last(z_1, noise):
        at = lambda logsnr: noise[jnp.argmin(jnp.abs(grid - logsnr))]
        fed = WithNoise(
            sampler,
            lambda s: s._replace(noise=jnp.full_like(s.z_t, noise[s.index])),
            lambda z, logsnr: jnp.full_like(z, at(logsnr)),
        )
        keys = jax.random.split(jax.random.key(0), 1)
        return samplers.sample(denoise, z_1.reshape(1, 1, 1, 1), grid, sampler=fed, keys=keys)[0, 0, 0, 0]

    start = jnp.float32(alpha64(-8) * MEAN), jnp.zeros(steps)
    mean, (by_start, by_noise) = jax.jit(jax.value_and_grad(last, argnums=(0, 1)))(*start)
    variance = alpha64(-8) ** 2 * VAR + 1 / (1 + np.exp(-8.0))
    return float(mean), float(by_start) ** 2 * variance + float(np.sum(np.float64(by_noise) ** 2))


@pytest.mark.parametrize(("name", "order"), [
    ("ddpm gamma 0", 1), ("ddpm gamma 0.3", 1), ("ddpm gamma 1", 1), ("ddim eta 0.6", 1),
    ("dpmpp_2m_sde", 2), ("dpmpp_2m_sde eta 0.5", 2), ("heun with churn", 2),
])  # fmt: skip
def test_mean_and_variance_of_stochastic_samplers_converge_with_the_order(name, order):
    expected = MEAN, VAR  # at a last level of 14, sigma^2 is 8e-7

    def deviation(steps):
        mean, variance = moments(STOCHASTIC[name], steps)
        return max(abs(mean - expected[0]), abs(variance - expected[1]))

    coarse, fine = deviation(88), deviation(176)
    assert coarse / fine > 2**order * 0.75 and fine < 0.05


# --- stochastic samplers --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_reach_mean_and_variance(name):
    keys, z_1 = many(4, rows=100)
    num = z_1.size
    spacing, steps = ("rho", 100) if "heun" in name else ("t", 250)
    grid = schedules.grid(COSINE, steps, spacing)
    x = samplers.sample(denoise, z_1, grid, sampler=STOCHASTIC[name], keys=keys)
    assert float(x.mean()) == pytest.approx(MEAN, abs=4 * (VAR / num) ** 0.5 + 0.002)
    assert float(x.var()) == pytest.approx(VAR, rel=0.06)


# --- mixtures -------------------------------------------------------------------------------------


def mixture(z_t, logsnr_t, share=0.3, spread=0.05):
    """E[x | z_t] for x = -0.6 (share) or 0.6, each +- spread."""
    alpha, sigma = (a[:, None, None, None] for a in schedules.alpha_sigma(logsnr_t))
    variance = alpha**2 * spread**2 + sigma**2
    modes = jnp.array([-0.6, 0.6])[:, None, None, None, None]
    log_weight = jnp.log(jnp.array([share, 1 - share]))[:, None, None, None, None]
    log_weight = log_weight - (z_t[None] - alpha[None] * modes) ** 2 / (2 * variance[None])
    estimate = modes + alpha[None] * spread**2 * (z_t[None] - alpha[None] * modes) / variance[None]
    return jnp.sum(jax.nn.softmax(log_weight, axis=0) * estimate, axis=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
def test_the_modes_of_a_mixture_get_their_weights(name):
    keys, z_1 = many(2, rows=100)
    num = z_1.size
    grid = schedules.grid(COSINE, 100, "rho" if "heun" in name else "t")
    x = np.asarray(samplers.sample(mixture, z_1, grid, sampler=ALL[name], keys=keys))
    assert np.mean(x < 0) == pytest.approx(0.3, abs=4 * (0.21 / num) ** 0.5 + 0.003)
    assert np.mean(np.abs(np.abs(x) - 0.6) < 0.2) > 0.99


# --- one scan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_an_image_does_not_depend_on_its_batch(name):
    keys = jax.random.split(jax.random.key(0), 5)
    z_1 = samplers.normal(keys, (4, 4, 3))
    grid = schedules.grid(COSINE, 8, "rho")
    together = samplers.sample(denoise, z_1, grid, sampler=ALL[name], keys=keys, resample=2)
    alone = samplers.sample(denoise, z_1[3:4], grid, sampler=ALL[name], keys=keys[3:4], resample=2)
    np.testing.assert_allclose(alone[0], together[3], atol=1e-5)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_known_image_is_reached_exactly(name, steps):
    x = jnp.linspace(-1, 1, 48).reshape(1, 4, 4, 3)
    keys = jax.random.split(jax.random.key(0), 1)
    z_1 = samplers.normal(keys, (4, 4, 3))
    run = jax.jit(lambda grid: samplers.sample(lambda z, _: x, z_1, grid, sampler=ALL[name], keys=keys))
    for schedule in (COSINE, schedules.zero_terminal(schedules.make("linear"))):
        for spacing in schedules.SPACINGS:
            out = run(schedules.grid(schedule, steps, spacing))
            np.testing.assert_allclose(out, x, atol=3e-3, err_msg=spacing)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "jump"),
    [
        *((name, 1) for name in ALL),
        # Jumps are the loop's, not the sampler's: one sampler of each order, and one that adds noise.
        *((name, 3) for name in ("ddim eta 0.6", "dpmpp_2m", "unipc order 2", "heun")),
    ],
)
def test_resampling_keeps_the_distribution(name, jump):
    """Going back up and down again is a step of a Markov chain that leaves the marginals alone."""
    keys, z_1 = many(2, rows=100)
    # Each visit repeats the error of ddpm's lower variance, which takes a point for the data.
    steps = 150 if "ddpm" in name else 60
    grid = schedules.grid(COSINE, steps, "rho" if "heun" in name else "t")
    x = samplers.sample(denoise, z_1, grid, sampler=ALL[name], keys=keys, resample=3, jump=jump)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(x.var()) == pytest.approx(VAR, rel=0.12)


DIFFUSERS = np.load(GOLDENS / "samplers.npz")
RUNS = {  # sampler, what the network predicts
    "ddim": (samplers.DDIM(), "eps"),
    "ddim_eta": (samplers.DDIM(0.7), "eps"),
    "ddim_v": (samplers.DDIM(), "v"),
    "ddim_v_to_alpha_0": (samplers.DDIM(), "v"),
    "ddpm_small": (samplers.DDPM(0.0), "eps"),
    "ddpm_small_linspace": (samplers.DDPM(0.0), "eps"),
    "ddpm_large_linspace": (samplers.DDPM(1.0), "eps"),
    "dpmpp_2m": (samplers.DPMpp2M(), "eps"),
    "dpmpp_2m_to_sigma_min": (samplers.DPMpp2M(), "eps"),
    "dpmpp_2m_sde": (samplers.DPMpp2MSDE(1.0), "eps"),
    "heun": (samplers.Heun(), "eps"),
    "heun_linspace": (samplers.Heun(), "eps"),
    "heun_rho": (samplers.Heun(), "eps"),
    "heun_churn": (samplers.Heun(churn=3.0, churn_noise=1.003), "eps"),
    "unipc_2": (samplers.UniPC(2), "eps"),
    "unipc_3": (samplers.UniPC(3), "eps"),
    "unipc_3_v_long": (samplers.UniPC(3), "v"),
    "unipc_3_to_sigma_min": (samplers.UniPC(3), "eps"),
}


def network(z_t, logsnr_t):
    """v_hat. The script that made the goldens has the same."""
    alpha, sigma = schedules.alpha_sigma(process.expand(logsnr_t, z_t))
    return 0.3 * sigma * jnp.cos(2 * z_t) - jnp.tanh(0.8 * alpha * z_t + 0.1 * jnp.sin(5 * z_t))


def with_noise(inner, noise, logsnr_grid):
    """`inner`, which in step i adds noise[i] whatever the keys."""
    at_level = lambda z_t, logsnr_t: noise[jnp.searchsorted(logsnr_grid, logsnr_t)]
    return WithNoise(inner, lambda s: s._replace(noise=noise[s.index]), at_level)


def test_every_golden_is_compared():
    assert {key.split("/")[0] for key in DIFFUSERS if "/" in key} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_same_as_diffusers(name):
    """In the estimates of all steps and in the last z."""
    sampler, prediction = RUNS[name]

    def denoise(z_t, logsnr_t):
        out = network(z_t, logsnr_t)
        out = process.eps_from(z_t, out, logsnr_t, "v") if prediction == "eps" else out
        return process.x_from(z_t, out, logsnr_t, prediction)

    @jax.jit
    def run(z_1, noise, grid):
        keys = jax.random.split(jax.random.key(0), len(z_1))  # what they give is replaced
        options = {"sampler": with_noise(sampler, noise, grid), "return_info": True, "trajectory": True}
        return samplers.sample(denoise, z_1, grid, keys=keys, **options)

    # Schedulers end at sigma 0. LOGSNR_MAX leaves sigma eps_hat (sigma 5e-5), logsnr 30 nothing. After
    # steps as long as h = 2.5 and 3.9 the eps_hat of a corrected z is as large as 24.
    left = 2e-3 if name == "unipc_3_v_long" else 1e-4
    for clean, atol in ((30.0, 2e-5), (schedules.LOGSNR_MAX, left)):
        grid = np.minimum(DIFFUSERS[f"{name}/logsnr"], clean).astype(np.float32)
        z_0, info = run(DIFFUSERS["z_1"], DIFFUSERS["noise"], grid)
        np.testing.assert_allclose(z_0, DIFFUSERS[f"{name}/z_0"], atol=atol, rtol=0)
        # From eps at alpha 0.006, float32 gives x_hat to 5e-5.
        np.testing.assert_allclose(info.x_hats, DIFFUSERS[f"{name}/x_hats"], atol=1e-4, rtol=0)
