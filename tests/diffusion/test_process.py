import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import process, schedules

LOGSNR = jnp.array([-15.0, -4.0, 0.0, 3.0, 12.0])
X, EPS = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 3))
Z = process.diffuse(X, EPS, LOGSNR)


@pytest.mark.parametrize("prediction", process.PREDICTIONS)
def test_each_prediction_gives_back_x_eps_and_v(prediction):
    middle = slice(1, 4)  # at the ends float32 cannot recover what the noise has swamped
    z, logsnr = Z[middle], LOGSNR[middle]
    out = process.target(X, EPS, LOGSNR, prediction)[middle]
    v = process.target(X, EPS, LOGSNR, "v")[middle]
    np.testing.assert_allclose(process.x_from(z, out, logsnr, prediction), X[middle], atol=2e-5)
    np.testing.assert_allclose(process.eps_from(z, out, logsnr, prediction), EPS[middle], atol=2e-5)
    np.testing.assert_allclose(process.v_from(z, out, logsnr, prediction), v, atol=2e-5)


@pytest.mark.parametrize("prediction", process.PREDICTIONS)
@pytest.mark.parametrize("via", process.PREDICTIONS)
def test_cycles(prediction, via):
    convert = {"x": process.x_from, "eps": process.eps_from, "v": process.v_from}
    z, logsnr = Z[1:4], LOGSNR[1:4]
    out = X[1:4] * 0.3 + 0.1
    there = convert[via](z, out, logsnr, prediction)
    np.testing.assert_allclose(convert[prediction](z, there, logsnr, via), out, atol=5e-5)


def test_v_is_exact_at_both_ends():
    v = process.target(X, EPS, LOGSNR, "v")
    np.testing.assert_allclose(process.x_from(Z, v, LOGSNR, "v"), X, atol=1e-6)


def test_diffuse_has_the_stated_moments():
    logsnr = jnp.full((20_000,), -1.0)
    x = jnp.full((20_000, 1, 1, 1), 0.7)
    z = process.diffuse(x, jax.random.normal(jax.random.key(1), x.shape), logsnr)
    alpha, sigma = schedules.alpha_sigma(-1.0)
    np.testing.assert_allclose(z.mean(), alpha * 0.7, atol=4 * sigma / 20_000**0.5)
    np.testing.assert_allclose(z.std(), sigma, rtol=0.03)


def test_posterior_is_bayes_rule():
    """q(z_s | z_t, x) from the product of two Gaussians in float64."""
    logsnr_t, logsnr_s = -1.0, 1.5
    alpha = lambda logsnr: np.sqrt(1 / (1 + np.exp(-logsnr)))
    sigma = lambda logsnr: np.sqrt(1 / (1 + np.exp(logsnr)))
    a_ts = alpha(logsnr_t) / alpha(logsnr_s)
    var_ts = sigma(logsnr_t) ** 2 - a_ts**2 * sigma(logsnr_s) ** 2
    var = 1 / (1 / sigma(logsnr_s) ** 2 + a_ts**2 / var_ts)
    mean = var * (alpha(logsnr_s) * 0.4 / sigma(logsnr_s) ** 2 + a_ts * -0.9 / var_ts)
    got_mean, got_var = process.posterior(
        z_t=jnp.full((1, 1), -0.9), x=jnp.full((1, 1), 0.4), logsnr_t=logsnr_t, logsnr_s=logsnr_s
    )
    np.testing.assert_allclose(got_mean[0, 0], mean, rtol=1e-5)
    np.testing.assert_allclose(np.ravel(got_var)[0], var, rtol=1e-5)


def test_unknown_prediction():
    with pytest.raises(ValueError, match="one of x, eps, v; got 'flow'"):
        process.x_from(Z, Z, LOGSNR, "flow")
