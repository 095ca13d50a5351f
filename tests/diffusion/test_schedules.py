import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import schedules

NAMES = ("cosine", "linear", "shifted_cosine")
T = np.linspace(0.01, 0.99, 99)


def reference(name, t):
    """float64."""
    if name == "linear":
        return -np.log(np.expm1(0.1 * t + 9.95 * t**2))
    return -2 * np.log(np.tan(np.pi * t / 2)) + (2 * np.log(64 / 256) if name == "shifted_cosine" else 0)


@pytest.mark.parametrize("name", NAMES)
def test_values_agree_with_float64(name):
    logsnr = schedules.make(name, size=256).logsnr(T)
    assert logsnr.dtype == jnp.float32
    np.testing.assert_allclose(logsnr, reference(name, T), atol=2e-5)


@pytest.mark.parametrize("name", NAMES)
def test_inverse(name):
    schedule = schedules.make(name, size=256)
    np.testing.assert_allclose(schedule.inverse(schedule.logsnr(T)), T, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_decreases_and_stays_in_range(name):
    logsnr = np.asarray(schedules.make(name).logsnr(np.linspace(0, 1, 1001)))
    assert np.isfinite(logsnr).all() and (np.diff(logsnr) <= 0).all()
    assert logsnr[0] == schedules.LOGSNR_MAX and logsnr[-1] >= schedules.LOGSNR_MIN


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


def test_grid_runs_from_noise_to_image():
    grid = schedules.grid(schedules.make("cosine"), 10)
    assert grid.shape == (11,) and (np.diff(grid) > 0).all()


def test_unknown_name():
    with pytest.raises(ValueError, match="cosine, linear or shifted_cosine; got 'quadratic'"):
        schedules.make("quadratic")
