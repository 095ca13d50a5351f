import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from imagen_jax.diffusion import process, schedules

NAMES = list(schedules.SCHEDULES)
T = np.linspace(0.01, 0.99, 99)


def sigmoid_reference(t):
    """Jabri et al.'s alpha^2: (s(end) - s(u)) / (s(end) - s(start)) at u = start + t (end - start)."""
    s = lambda u: 1 / (1 + np.exp(-u))
    alpha2 = (s(3.0) - s(-3 + 6 * t)) / (s(3.0) - s(-3.0))
    return np.log(alpha2 / (1 - alpha2))


def discrete_cosine_reference():
    """Nichol & Dhariwal's abar as a ratio of f; only the last beta, which would be 1, is clipped."""
    f = np.cos((np.arange(1000) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    product = np.append(f[1:] / f[0], f[-1] / f[0] * 0.001)
    return np.log(product / (1 - product))


COSINE = lambda t: -2 * np.log(np.tan(np.pi * t / 2))
REFERENCES = {  # float64, at size 256
    "cosine": COSINE,
    "linear": lambda t: -np.log(np.expm1(0.1 * t + 9.95 * t**2)),
    "shifted_cosine": lambda t: COSINE(t) + 2 * np.log(64 / 256),
    "interpolated_cosine": lambda t: COSINE(t) + t * 2 * np.log(32 / 256) + (1 - t) * 2 * np.log(256 / 256),
    "sigmoid": sigmoid_reference,
    "edm": lambda t: -2 * np.log((0.002 ** (1 / 7) + t * (80 ** (1 / 7) - 0.002 ** (1 / 7))) ** 7),
    "lognormal": lambda t: -2 * (-1.2 + 1.2 * stats.norm.ppf(t)),
    "discrete_cosine": lambda t: np.interp(t, np.arange(1, 1001) / 1000, discrete_cosine_reference()),
}


@pytest.mark.parametrize("name", NAMES)
def test_values_agree_with_float64(name):
    logsnr = schedules.make(name, size=256).logsnr(T)
    assert logsnr.dtype == jnp.float32
    # The discrete one is rounded as published code rounds it.
    np.testing.assert_allclose(logsnr, REFERENCES[name](T), atol=2e-4 if name == "discrete_cosine" else 3e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_stretched", [False, True])
def test_inverse(name, is_stretched):
    schedule = schedules.make(name, size=256)
    schedule = schedules.zero_terminal(schedule) if is_stretched else schedule
    logsnr = schedule.logsnr(T)
    np.testing.assert_allclose(schedule.inverse(logsnr), T, atol=2e-4 if name == "edm" else 2e-5)
    np.testing.assert_allclose(schedule.logsnr(schedule.inverse(logsnr)), logsnr, atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_decreases_and_stays_in_range(name):
    logsnr = np.asarray(schedules.make(name).logsnr(np.linspace(0, 1, 1001)))
    assert np.isfinite(logsnr).all() and (np.diff(logsnr) <= 0).all()
    assert logsnr[0] <= schedules.LOGSNR_MAX and logsnr[-1] >= schedules.LOGSNR_MIN


def test_cosine_ends_in_pure_noise():
    assert schedules.cosine(1.0) == schedules.LOGSNR_MIN


def test_linear_matches_the_discrete_schedule_of_the_paper():
    beta = np.linspace(1e-4, 0.02, 1000)
    log_alpha2 = np.cumsum(np.log1p(-beta))
    steps = np.array([99, 499, 899])
    discrete = log_alpha2[steps] - np.log(-np.expm1(log_alpha2[steps]))
    np.testing.assert_allclose(schedules.linear((steps + 1) / 1000), discrete, atol=0.06)


def test_shift_is_the_snr_of_averaged_pixels():
    """Averaging (256/64)^2 pixels divides the noise variance by 16, which is 2 log 4 in log-SNR."""
    np.testing.assert_allclose(
        schedules.shifted_cosine(T, 256) + 2 * np.log(4), schedules.cosine(T), atol=1e-5
    )
    np.testing.assert_allclose(schedules.shifted_cosine(T, 64), schedules.cosine(T))


def test_alpha_sigma_keep_their_small_values():
    logsnr = np.linspace(-20, 20, 81)
    alpha, sigma = schedules.alpha_sigma(logsnr)
    np.testing.assert_allclose(alpha**2 + sigma**2, np.ones(81), atol=1e-6)
    np.testing.assert_allclose(sigma, np.sqrt(1 / (1 + np.exp(logsnr))), rtol=1e-5)
    np.testing.assert_allclose(alpha, np.sqrt(1 / (1 + np.exp(-logsnr))), rtol=1e-5)


def test_alpha_sigma_of_noise_alone():
    assert [float(a) for a in schedules.alpha_sigma(-jnp.inf)] == [0.0, 1.0]


# --- zero terminal SNR ----------------------------------------------------------------------------


def test_zero_terminal_is_the_published_stretch_of_alpha():
    """Lin et al. 2023, algorithm 1, in float64 on the paper's discrete schedule."""
    t = np.linspace(0, 1, 1001)
    alpha = np.sqrt(1 / (1 + np.exp(-np.asarray(schedules.linear(t), np.float64))))
    expected = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    got, _ = schedules.alpha_sigma(schedules.zero_terminal(schedules.make("linear")).logsnr(t))
    np.testing.assert_allclose(got, expected, atol=2e-6)
    assert got[-1] == 0


@pytest.mark.parametrize("prediction", ["x", "v", "edm"])
def test_x_is_known_from_the_output_where_there_is_noise_alone(prediction):
    x, eps = jax.random.normal(jax.random.key(0), (2, 1, 4, 4, 3))
    logsnr = jnp.array([-jnp.inf])
    z = process.diffuse(x, eps, logsnr)
    np.testing.assert_array_equal(z, eps)
    out = process.target(x, eps, logsnr, prediction)
    np.testing.assert_allclose(process.x_from(z, out, logsnr, prediction), x, atol=1e-6)


# --- user functions -------------------------------------------------------------------------------


def test_any_function_is_a_schedule():
    schedule = schedules.from_function(lambda t: 8 - 15 * t - t**3)
    np.testing.assert_allclose(schedule.inverse(schedule.logsnr(T)), T, atol=1e-6)
    assert schedules.grid(schedule, 5)[0] == -8


@pytest.mark.parametrize("function", [lambda t: t, lambda t: 1 / (t - 0.5), lambda t: 0 * t])
def test_a_function_that_does_not_decrease_is_refused(function):
    with pytest.raises(ValueError, match="must be finite and decrease from t = 0 to t = 1"):
        schedules.from_function(function)


def test_unknown_name():
    with pytest.raises(ValueError, match="must be one of cosine, linear, .*; got 'quadratic'"):
        schedules.make("quadratic")


def test_a_table_of_a_discretely_trained_network_is_a_schedule():
    """1000 steps of beta from 1e-4 to 0.02 (Ho et al. 2020): its levels, both ways."""
    products = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    table = np.log(products) - np.log1p(-products)
    schedule = schedules.from_table(table)
    times = jnp.arange(1, 1001) / 1000
    np.testing.assert_allclose(schedule.logsnr(times), table, atol=1e-3)
    np.testing.assert_allclose(schedule.inverse(schedule.logsnr(times)), times, atol=1e-5)
    np.testing.assert_allclose(schedule.logsnr(times), schedules.linear(times), atol=0.1)
    grid = schedules.grid(schedule, 4, "trailing")
    np.testing.assert_allclose(grid[:-1], table[[999, 749, 499, 249]], atol=1e-3)
