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
    edm_from = lambda z, out, logsnr, prediction: process.target(
        process.x_from(z, out, logsnr, prediction),
        process.eps_from(z, out, logsnr, prediction),
        logsnr,
        "edm",
    )
    convert = {"x": process.x_from, "eps": process.eps_from, "v": process.v_from, "edm": edm_from}
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


def test_edm_is_the_published_preconditioning():
    """Karras et al. 2022, table 1, in their variables y = z / alpha and S = sigma / alpha, float64."""
    out = np.asarray(jax.random.normal(jax.random.key(1), X.shape), np.float64)
    shape = (-1, 1, 1, 1)
    s2 = np.exp(-np.asarray(LOGSNR, np.float64)).reshape(shape)
    alpha = np.sqrt(1 / (1 + s2))
    d2 = process.SIGMA_DATA**2
    y = np.asarray(Z, np.float64) / alpha
    d_of_y = d2 / (s2 + d2) * y + np.sqrt(s2 * d2 / (s2 + d2)) * out
    np.testing.assert_allclose(process.x_from(Z, out, LOGSNR, "edm"), d_of_y, atol=1e-4, rtol=1e-4)
    c_in = (1 / np.sqrt(s2 + d2) / alpha).reshape(-1)  # the network sees c_in y
    np.testing.assert_allclose(process.network_scale(LOGSNR, "edm"), c_in, rtol=1e-5)
    z = process.diffuse(0.5 * X, EPS, LOGSNR) * process.network_scale(LOGSNR, "edm").reshape(shape)
    np.testing.assert_allclose(z.std(axis=(1, 2, 3)), np.ones(5), atol=0.3)


def test_renoise_has_the_moments_of_a_longer_diffusion():
    """q(z_t | z_s) after q(z_s | x) is q(z_t | x): closed form for mean and variance."""
    num = 40_000
    keys = jax.random.split(jax.random.key(2), 2)
    eps_s, eps_t = (jax.random.normal(key, (num, 1, 1, 1)) for key in keys)
    x = jnp.full((num, 1, 1, 1), 0.7)
    for logsnr_s, logsnr_t in ((2.0, -1.0), (20.0, 0.0), (0.02, 0.0), (3.0, -np.inf)):
        z_s = process.diffuse(x, eps_s, jnp.full((num,), logsnr_s))
        z_t = process.renoise(z_s, eps_t, logsnr_s=jnp.float32(logsnr_s), logsnr_t=jnp.float32(logsnr_t))
        alpha, sigma = schedules.alpha_sigma(logsnr_t)
        np.testing.assert_allclose(z_t.mean(), alpha * 0.7, atol=4 * sigma / num**0.5)
        np.testing.assert_allclose(z_t.var(), sigma**2, rtol=4 * (2 / num) ** 0.5)


def test_posterior_from_noise_alone_forgets_z():
    mean, variance = process.posterior(
        z_t=Z, x=X, logsnr_t=jnp.full((5,), -jnp.inf), logsnr_s=jnp.full((5,), 1.0)
    )
    alpha, sigma = schedules.alpha_sigma(1.0)
    np.testing.assert_allclose(mean, alpha * X, rtol=1e-6)
    np.testing.assert_allclose(np.ravel(variance)[0], sigma**2, rtol=1e-6)


def test_unknown_prediction():
    with pytest.raises(ValueError, match="one of x, eps, v, edm; got 'flow'"):
        process.x_from(Z, Z, LOGSNR, "flow")
