"""Samplers against closed forms: Gaussian data, whose exact denoiser is known, and mixtures of them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import denoisers, samplers, schedules
from imagen_jax.diffusion.samplers import scan

COSINE = schedules.make("cosine")
MEAN, VAR = 0.3, 0.25
DETERMINISTIC = {  # sampler, order of convergence
    "ddim": (samplers.DDIM(), 1),
    "dpmpp_2m": (samplers.DPMpp2M(), 2),
    "heun": (samplers.Heun(), 2),
    "unipc order 1": (samplers.UniPC(1), 2),  # its corrector lifts it by one
    "unipc order 2": (samplers.UniPC(2), 3),
}
STOCHASTIC = {
    "ddpm gamma 0": samplers.DDPM(0.0),
    "ddpm gamma 0.3": samplers.DDPM(0.3),
    "ddpm gamma 1": samplers.DDPM(1.0),
    "ddim eta 0.6": samplers.DDIM(0.6),
    "dpmpp_2m_sde": samplers.DPMpp2MSDE(1.0),
    "dpmpp_2m_sde eta 0.5": samplers.DPMpp2MSDE(0.5),
    "heun with churn": samplers.Heun(churn=40.0, churn_noise=1.0),
}
ALL = {name: sampler for name, (sampler, _) in DETERMINISTIC.items()} | STOCHASTIC


def denoise(z_t, logsnr_t):
    """E[x | z_t] for x ~ N(MEAN, VAR)."""
    alpha, sigma = (a[:, None, None, None] for a in schedules.alpha_sigma(logsnr_t))
    return MEAN + alpha * VAR * (z_t - alpha * MEAN) / (alpha**2 * VAR + sigma**2)


def alpha64(logsnr):
    return np.sqrt(1 / (1 + np.exp(-np.float64(logsnr))))


def probability_flow(z_t, logsnr_t, logsnr_s):
    """Where the exact ODE takes z_t: its standardised value is constant. float64."""
    std = lambda logsnr: np.sqrt(alpha64(logsnr) ** 2 * VAR + 1 / (1 + np.exp(np.float64(logsnr))))
    return alpha64(logsnr_s) * MEAN + std(logsnr_s) * (z_t - alpha64(logsnr_t) * MEAN) / std(logsnr_t)


def error(sampler, grid):
    z_1 = jnp.linspace(-2, 2, 8).reshape(8, 1, 1, 1)
    exact = probability_flow(np.asarray(z_1, np.float64), float(grid[0]), float(grid[-1]))
    return np.abs(samplers.sample(denoise, z_1, grid, sampler=sampler) - exact).max()


@dataclasses.dataclass(frozen=True)
class WithNoise(samplers.Sampler):
    """A sampler from outside the package: `inner` with given noise in place of that of the keys."""

    inner: Any
    replaced: Any  # Step -> Step
    noise: Any  # (z_t, logsnr_t) -> noise
    is_stochastic = True

    def check(self):
        pass

    def init(self, z_1, logsnr_grid):
        return self.inner.init(z_1, logsnr_grid)

    def step(self, s, carry):
        return self.inner.step(self.replaced(s), carry)

    def add_noise(self, z_t, logsnr_t, noise, steps):
        return self.inner.add_noise(z_t, logsnr_t, self.noise(z_t, logsnr_t), steps)


def many(num, seed=1):
    return jax.random.split(jax.random.key(seed), num), samplers.normal(
        jax.random.split(jax.random.key(seed + 1), num), (1, 1, 1)
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


def test_unipc_order_3_is_at_the_limit_of_float32_in_few_steps():
    errors = [error(samplers.UniPC(order), jnp.linspace(-6, 6, 21)) for order in (1, 2, 3)]
    assert errors[2] < 5e-4 and errors[1] < errors[0] / 5


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


@pytest.mark.parametrize("name", ["cosine", "linear", "shifted_cosine", "sigmoid", "edm"])
@pytest.mark.parametrize(("sampler", "bound"), [("ddim", 0.05), ("dpmpp_2m", 0.01), ("unipc", 0.01)])
@pytest.mark.parametrize("is_stretched", [False, True])
def test_schedules_reach_the_data(sampler, bound, name, is_stretched):
    schedule = schedules.make(name)
    schedule = schedules.zero_terminal(schedule) if is_stretched else schedule
    z_1 = jnp.linspace(-2, 2, 8).reshape(8, 1, 1, 1)
    exact = MEAN + np.sqrt(VAR) * z_1
    off = lambda steps: np.abs(
        samplers.sample(denoise, z_1, schedules.grid(schedule, steps), sampler=sampler) - exact
    ).max()
    assert off(64) < bound * (4 if name == "linear" else 1) and off(256) < bound


@pytest.mark.parametrize("spacing", ["logsnr", "rho"])
def test_heun_reaches_the_data_on_the_grids_of_sigma(spacing):
    grid = schedules.grid(COSINE, 32, spacing)
    assert error(samplers.Heun(), grid) < 0.03


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
    num = 40_000
    keys, z_1 = many(num)
    spacing, steps = ("rho", 100) if "heun" in name else ("t", 250)
    grid = schedules.grid(COSINE, steps, spacing)
    x = samplers.sample(denoise, z_1, grid, sampler=STOCHASTIC[name], keys=keys)
    assert float(x.mean()) == pytest.approx(MEAN, abs=4 * (VAR / num) ** 0.5 + 0.002)
    assert float(x.var()) == pytest.approx(VAR, rel=0.06)


def test_eta_0_is_deterministic_and_eta_1_is_ddpm():
    keys, z_1 = many(16)
    run = lambda sampler: samplers.sample(
        denoise, z_1, schedules.grid(COSINE, 20), sampler=sampler, keys=keys
    )
    np.testing.assert_allclose(run(samplers.DDIM(1.0)), run(samplers.DDPM(0.0)), atol=2e-5)
    np.testing.assert_array_equal(run(samplers.DPMpp2MSDE(0.0)), run("dpmpp_2m"))
    assert not samplers.DDIM().is_stochastic and samplers.make("dpmpp_2m_sde").is_stochastic


def test_an_estimated_variance_takes_the_place_of_gamma():
    """Its share between the bounds is the network's, value by value."""
    keys = jax.random.split(jax.random.key(0), 2)
    z_1 = samplers.normal(keys, (1, 2, 1))
    run = lambda denoise, gamma: samplers.sample(
        denoise, z_1, schedules.grid(COSINE, 5), sampler=samplers.DDPM(gamma), keys=keys
    )
    shares = jnp.broadcast_to(jnp.array([0.3, 1.0])[None, None, :, None], z_1.shape)
    estimating = lambda z_t, logsnr_t: denoisers.Estimate(denoise(z_t, logsnr_t), log_variance=shares)
    got = run(estimating, 0.7)
    for column, gamma in enumerate((0.3, 1.0)):
        np.testing.assert_allclose(got[:, :, column], run(denoise, gamma)[:, :, column], rtol=1e-5, atol=1e-5)


def test_churn_raises_the_level_and_adds_the_missing_variance():
    """Before the model is called z has the exact marginal of the noisier level."""
    num = 50_000
    seen = {}

    def recorded(z_t, logsnr_t):
        jax.debug.callback(lambda z, logsnr: seen.setdefault(float(logsnr[0]), np.asarray(z)), z_t, logsnr_t)
        return denoise(z_t, logsnr_t)

    keys, eps = many(num)
    grid = jnp.array([0.0, 3.0])
    alpha, sigma = schedules.alpha_sigma(0.0)
    x = MEAN + VAR**0.5 * samplers.normal(jax.random.split(jax.random.key(7), num), (1, 1, 1))
    sampler = samplers.Heun(churn=0.3, churn_noise=1.0)
    jax.block_until_ready(
        samplers.sample(recorded, alpha * x + sigma * eps, grid, sampler=sampler, keys=keys)
    )
    jax.effects_barrier()
    [logsnr] = [level for level in seen if level < -0.1]
    assert np.exp(-logsnr / 2) == pytest.approx(1.3, rel=1e-5)
    alpha, sigma = schedules.alpha_sigma(logsnr)
    assert seen[logsnr].mean() == pytest.approx(float(alpha) * MEAN, abs=0.02)
    assert seen[logsnr].var() == pytest.approx(float(alpha**2 * VAR + sigma**2), rel=0.03)


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


@pytest.mark.parametrize("name", ALL)
def test_the_modes_of_a_mixture_get_their_weights(name):
    num = 20_000
    keys, z_1 = many(num)
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
@pytest.mark.parametrize("spacing", schedules.SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_a_known_image_is_reached_exactly(name, spacing, steps):
    x = jnp.linspace(-1, 1, 48).reshape(1, 4, 4, 3)
    keys = jax.random.split(jax.random.key(0), 1)
    z_1 = samplers.normal(keys, (4, 4, 3))
    for schedule in (COSINE, schedules.zero_terminal(schedules.make("linear"))):
        grid = schedules.grid(schedule, steps, spacing)
        out = samplers.sample(lambda z, _: x, z_1, grid, sampler=ALL[name], keys=keys)
        np.testing.assert_allclose(out, x, atol=3e-3)


def test_trajectory_and_callback_only_when_asked_for():
    keys, z_1 = many(3)
    grid = schedules.grid(COSINE, 6)
    seen = []
    x, info = samplers.sample(
        denoise, z_1, grid, return_info=True, trajectory=True,
        callback=lambda step, x_hat: seen.append((int(step), x_hat.copy())),
    )  # fmt: skip
    jax.effects_barrier()
    assert info.x_hats.shape == (6, 3, 1, 1, 1) and [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(info.x_hats, np.stack([x_hat for _, x_hat in seen]))
    _, info = samplers.sample(denoise, z_1, grid, return_info=True)
    assert info.x_hats is None
    text = str(jax.make_jaxpr(lambda z: samplers.sample(denoise, z, grid))(z_1))
    assert "callback" not in text and text.count("scan[") == 1


@pytest.mark.parametrize("name", ["ddim", "heun", "unipc order 2"])
def test_one_traced_loop_whatever_the_number_of_steps(name):
    size = lambda steps: len(
        str(
            jax.make_jaxpr(
                lambda z: samplers.sample(denoise, z, jnp.linspace(-5, 5, steps + 1), sampler=ALL[name])
            )(jnp.zeros((1, 1, 1, 1)))
        )
    )
    assert size(200) < 1.2 * size(20)


def test_calls_of_the_model():
    """Heun takes two a step, and one in the last; all others one."""

    def calls(sampler):
        count = []

        def counted(z_t, logsnr_t):
            jax.debug.callback(lambda: count.append(1))
            return denoise(z_t, logsnr_t)

        keys, z_1 = many(1)
        grid = schedules.grid(COSINE, 5, "rho", sigma_min=0.1, sigma_max=10.0)
        jax.block_until_ready(samplers.sample(counted, z_1, grid, sampler=sampler, keys=keys))
        jax.effects_barrier()
        return len(count)

    assert {name: calls(sampler) for name, sampler in ALL.items()} == {
        name: 9 if "heun" in name else 5 for name in ALL
    }


# --- RePaint's resampling -------------------------------------------------------------------------


def test_resampling_visits_the_levels_in_the_published_order():
    number, place, before, is_first, back_to = scan._itinerary(steps=5, resample=3, jump=2)
    assert place.tolist() == [0, 1] * 3 + [2, 3] * 3 + [4] * 3
    assert before.tolist() == [0, *place.tolist()[:-1]]
    assert back_to.tolist() == [-1, 0, -1, 0, -1, -1, -1, 2, -1, 2, -1, -1, 4, 4, -1]
    assert np.flatnonzero(is_first).tolist() == [0, 2, 4, 8, 10, 13, 14]
    assert number.tolist() == list(range(15))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("jump", [1, 3])
def test_resampling_keeps_the_distribution(name, jump):
    """Going back up and down again is a step of a Markov chain that leaves the marginals alone."""
    num = 8_000
    keys, z_1 = many(num)
    # Each visit repeats the error of ddpm's lower variance, which takes a point for the data.
    steps = 150 if "ddpm" in name else 60
    grid = schedules.grid(COSINE, steps, "rho" if "heun" in name else "t")
    x = samplers.sample(denoise, z_1, grid, sampler=ALL[name], keys=keys, resample=3, jump=jump)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.03)
    assert float(x.var()) == pytest.approx(VAR, rel=0.12)


# --- broken estimates and wrong inputs ------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_broken_step_of_each_image_is_known(value):
    grid = schedules.grid(COSINE, 6)

    def breaks(z_t, logsnr_t):
        late = (logsnr_t >= grid[3]) & (jnp.arange(3) == 1)
        return jnp.where(late[:, None, None, None], value, denoise(z_t, logsnr_t))

    _, z_1 = many(3)
    _, info = samplers.sample(breaks, z_1, grid, sampler="dpmpp_2m", return_info=True)
    assert info.broken_at.tolist() == [0, 4, 0]


def test_an_estimate_inside_a_step_is_blamed_on_that_step():
    grid = schedules.grid(COSINE, 6, "rho")
    breaks = lambda z_t, logsnr_t: jnp.where(
        (logsnr_t == grid[3])[:, None, None, None] & (z_t > 1e9), 0.0, denoise(z_t, logsnr_t)
    )
    calls = lambda z_t, logsnr_t: jnp.where(
        (logsnr_t > grid[2])[:, None, None, None], jnp.nan, breaks(z_t, logsnr_t)
    )
    _, z_1 = many(2)
    _, info = samplers.sample(calls, z_1, grid, sampler="heun", return_info=True)
    assert info.broken_at.tolist() == [3, 3]  # the corrector of step 3 looks at level 4


def test_stochastic_samplers_and_resampling_need_keys():
    z_1, grid = jnp.zeros((1, 1, 1, 1)), schedules.grid(COSINE, 2)
    with pytest.raises(ValueError, match="a stochastic sampler: one for each image"):
        samplers.sample(denoise, z_1, grid, sampler="ddpm")
    with pytest.raises(ValueError, match="resample > 1: one for each image"):
        samplers.sample(denoise, z_1, grid, resample=2)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([5.0, 0.0, -5.0], "must decrease in noise .* got 5 then 0 at step 1"),
        ([-5.0, 0.0, 0.0], "got 0 then 0 at step 2"),
        ([-5.0, np.nan, 0.0], "got -5 then nan at step 1"),
        ([1.0], r"steps T >= 1; got shape \(1,\)"),
    ],
)
def test_wrong_grids(grid, message):
    with pytest.raises(ValueError, match=message):
        samplers.sample(denoise, jnp.zeros((1, 1, 1, 1)), jnp.array(grid))


def test_unknown_sampler_and_order():
    with pytest.raises(ValueError, match="ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, heun, unipc; got 'euler'"):
        samplers.sample(denoise, jnp.zeros((1, 1, 1, 1)), schedules.grid(COSINE, 2), sampler="euler")
    with pytest.raises(ValueError, match="order must be at most 3; got 4"):
        samplers.UniPC(4)


def test_a_denoiser_with_memory_keeps_it_from_step_to_step():
    grid = schedules.grid(COSINE, 5)
    counting = denoisers.Stateful(
        lambda z_1: jnp.zeros(()), lambda z_t, logsnr_t, count: (0 * z_t + count, count + 1)
    )
    _, info = samplers.sample(counting, jnp.zeros((1, 1, 1, 1)), grid, return_info=True, trajectory=True)
    assert info.x_hats.ravel().tolist() == [0, 1, 2, 3, 4]
