
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import losses, process, schedules

LOGSNR = jnp.linspace(-6, 6, 7)
SNR = np.exp(np.asarray(LOGSNR))
X, EPS, ERROR = jax.random.normal(jax.random.key(0), (3, 7, 4, 4, 3))
Z = process.diffuse(X, EPS, LOGSNR)


def loss_of_the_same_estimate(prediction, weight):
    """The loss of an estimate that is wrong by ERROR in x, whatever the network predicts."""
    x_hat = X + ERROR
    out = process.target(x_hat, process.eps_from(Z, x_hat, LOGSNR, "x"), LOGSNR, prediction)
    return losses.denoising_loss(out, x=X, eps=EPS, logsnr_t=LOGSNR, prediction=prediction, weight=weight)


@pytest.mark.parametrize("prediction", process.PREDICTIONS)
def test_weights_do_not_depend_on_the_prediction(prediction):
    x_mse = np.mean(np.square(ERROR), axis=(1, 2, 3))
    min_snr = loss_of_the_same_estimate(prediction, losses.min_snr(LOGSNR, prediction, 5.0))
    np.testing.assert_allclose(min_snr, np.minimum(SNR, 5) * x_mse, rtol=2e-3)
    floored = loss_of_the_same_estimate(prediction, losses.min_snr(LOGSNR, prediction, 5.0, floor=1.0))
    np.testing.assert_allclose(floored, np.clip(SNR, 1, 5) * x_mse, rtol=2e-3)
    v = loss_of_the_same_estimate(prediction, losses.v(LOGSNR, prediction, cap=100.0))
    np.testing.assert_allclose(v, np.minimum(SNR + 1, 100) * x_mse, rtol=2e-3)
    rate = jnp.ones_like(LOGSNR)
    sigmoid = loss_of_the_same_estimate(prediction, losses.sigmoid(LOGSNR, prediction, rate, bias=1.0))
    np.testing.assert_allclose(sigmoid, SNR * x_mse / (1 + np.exp(np.asarray(LOGSNR) - 1)) / 2, rtol=2e-3)


def test_x_prediction_with_weight_v_has_the_loss_of_v():
    """Of a network that predicts x, the loss is the mean squared error of v, below the cap."""
    x_hat = X + ERROR
    error = process.v_from(Z, x_hat, LOGSNR, "x") - process.target(X, EPS, LOGSNR, "v")
    got = loss_of_the_same_estimate("x", losses.v(LOGSNR, "x", cap=1e6))
    np.testing.assert_allclose(got, np.mean(np.square(error), axis=(1, 2, 3)), rtol=2e-3)
    np.testing.assert_allclose(losses.v(LOGSNR, "v", cap=1e6), np.ones(7), rtol=1e-5)


def test_plain_is_the_mean_squared_error():
    out = EPS + 0.5
    got = losses.denoising_loss(
        out, x=X, eps=EPS, logsnr_t=LOGSNR, prediction="eps", weight=losses.plain(LOGSNR)
    )
    np.testing.assert_allclose(got, np.full(7, 0.25), rtol=1e-5)


def test_rate_is_the_slope_of_the_schedule():
    t = jnp.array([0.2, 0.5, 0.8])
    np.testing.assert_allclose(
        losses.rate(schedules.make("cosine"), t), 2 * np.pi / np.sin(np.pi * t), rtol=1e-4
    )


@pytest.mark.parametrize("name", [*schedules.SCHEDULES])
def test_the_sigmoid_weight_is_finite_at_all_times(name):
    t = jnp.concatenate([jnp.linspace(0, 1, 1001), 1 - jnp.logspace(-7, -3, 50), jnp.logspace(-7, -3, 50)])
    for schedule in (schedules.make(name, 256), schedules.zero_terminal(schedules.make(name, 256))):
        logsnr, rate = schedule.logsnr(t), losses.rate(schedule, t)
        assert np.isfinite(rate).all() and (np.asarray(rate) >= 0).all()
        for prediction in ("v", "x", "edm"):
            weight = losses.sigmoid(logsnr, prediction, rate)
            assert np.isfinite(weight).all()
            np.testing.assert_allclose(weight[jnp.isneginf(logsnr)], 0)  # the limit of alpha alpha'
    np.testing.assert_array_equal(np.isfinite(losses.logit_normal_density(jnp.array([0.0, 1.0]), 0.8, 0.8)), True)


def test_times_are_stratified_and_uniform():
    t = np.asarray(
        jax.vmap(lambda key: losses.stratified_times(key, 8))(jax.random.split(jax.random.key(0), 500))
    )
    assert (np.sort(np.floor(t * 8), axis=1) == np.arange(8)[None]).all()
    assert abs(t[:, 0].mean() - 0.5) < 0.06 and t.min() >= 0 and t.max() < 1


def test_losses_by_level_are_exclusive_and_complete():
    rng = np.random.default_rng(0)
    values, levels = rng.random(100).astype("float32"), rng.uniform(-12, 12, 100).astype("float32")
    sums, counts = losses.by_logsnr(jax.numpy.asarray(values), jax.numpy.asarray(levels))
    edges = (-np.inf, *losses.BUCKET_EDGES, np.inf)
    for i, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        is_in = (levels >= low) & (levels < high)
        np.testing.assert_allclose(sums[i], values[is_in].sum(), rtol=1e-5)
        assert counts[i] == is_in.sum()


def test_logit_normal_times_have_their_quantiles_and_their_density():
    u = (jnp.arange(4000) + 0.5) / 4000
    t = np.asarray(losses.logit_normal(u, 0.8, 0.6))
    logit = np.log(t / (1 - t))
    assert (np.diff(t) > 0).all() and t.min() > 0 and t.max() < 1
    np.testing.assert_allclose([logit.mean(), logit.std()], [0.8, 0.6], atol=2e-3)
    slope = np.gradient(t, np.asarray(u))  # dt/du of a quantile function is 1 over the density
    inner = slice(40, -40)
    np.testing.assert_allclose(losses.logit_normal_density(t, 0.8, 0.6)[inner], 1 / slope[inner], rtol=5e-3)
    ends = losses.logit_normal(jnp.array([0.0, 1 - 2**-24]), 5.0, 10.0)
    assert 0 < ends[0] and ends[1] < 1 and jnp.isfinite(losses.logit_normal_density(ends, 5.0, 10.0)).all()
