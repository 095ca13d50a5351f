"""The denoising loss and its weights.

A weight is the factor on the mean squared error of the network's own target, a function of logsnr.
With SNR = exp(logsnr), the errors of one estimate are related by
    MSE(eps) = SNR MSE(x),    MSE(v) = (SNR + 1) MSE(x),    MSE(edm) = (SNR + 1 / d^2) MSE(x),
so a weight w on MSE(eps) is w SNR on MSE(x) and w SNR / (SNR + 1) on MSE(v).
"""

import jax
import jax.numpy as jnp

from imagen_jax import arrays, checks
from imagen_jax.diffusion import process
from imagen_jax.diffusion.schedules import LOGSNR_MAX, LOGSNR_MIN, Schedule


def plain(logsnr_t: jax.Array) -> jax.Array:
    """1, like logsnr_t [B]: the paper's loss for prediction "eps"."""
    arrays.array("logsnr_t", logsnr_t)
    return jnp.ones_like(logsnr_t)


def min_snr(logsnr_t: jax.Array, prediction: str, gamma: float = 5.0, floor: float = 0.0) -> jax.Array:
    """min(SNR, gamma) on MSE(x), whatever the prediction (Hang et al. 2023); [B], as logsnr_t.

    A `floor` up to gamma is the least weight: 1 is the truncated SNR of Salimans & Ho (2022), which keeps
    the noisiest levels, where the layout is decided, in the loss of a network that predicts x.
    """
    arrays.array("logsnr_t", logsnr_t)
    gamma = checks.number("gamma", gamma, "(0, inf)")
    floor = checks.number("floor", floor, "[0, inf)")
    checks.require(floor <= gamma, "floor", f"be at most gamma, {gamma:g}", floor)
    log_weight = jnp.clip(logsnr_t, jnp.log(floor), jnp.log(gamma))
    return jnp.exp(log_weight - _log_mse_ratio(logsnr_t, prediction))


def sigmoid(logsnr_t: jax.Array, prediction: str, rate_t: jax.Array, bias: float = 2.0) -> jax.Array:
    """-dlogsnr/dt sigmoid(bias - logsnr) / 2 on MSE(eps) (Kingma & Gao 2023; Hoogeboom et al. 2024).

    Args:
      logsnr_t: [B].
      prediction: what the network returns.
      rate_t: [B] -dlogsnr/dt over the density of t (1 for uniform times); it makes the loss independent of the
        schedule that t is drawn on and of the distribution of t.
      bias: larger weighs fine detail more; about 2 for 64x64, smaller for larger images.
    """
    arrays.array("logsnr_t", logsnr_t)
    if arrays.is_array(rate_t) and rate_t.ndim:
        arrays.like("rate_t", rate_t, "logsnr_t", logsnr_t)
    arrays.real("rate_t", rate_t)
    bias = checks.number("bias", bias)
    on_x = jax.nn.log_sigmoid(bias - logsnr_t) + logsnr_t
    return rate_t / 2 * jnp.exp(on_x - _log_mse_ratio(logsnr_t, prediction))


def v(logsnr_t: jax.Array, prediction: str, cap: float = 400.0) -> jax.Array:
    """min(SNR + 1, cap) on MSE(x), whatever the prediction: below the cap, 1 on MSE(v); [B], as logsnr_t.

    A network that predicts x minimises the loss of v with it (Li & He 2025, JiT). The weight grows without bound as
    noise vanishes; a `cap` of 400 is JiT's least noise level of 0.05, squared and inverted.
    """
    arrays.array("logsnr_t", logsnr_t)
    cap = checks.number("cap", cap, "[1, inf)")
    log_weight = jnp.minimum(jax.nn.softplus(logsnr_t), jnp.log(cap))
    return jnp.exp(log_weight - _log_mse_ratio(logsnr_t, prediction))


def stratified_times(key: jax.Array, num: int) -> jax.Array:
    """[num] times from `key`, each uniform in [0, 1), one in every interval of length 1/num (Kingma et al. 2021)."""
    checks.whole("num", num, 1)
    return (jax.random.uniform(arrays.key("key", key)) + jnp.arange(num, dtype=jnp.float32) / num) % 1.0


def logit_normal(u: jax.Array, mean: float, std: float) -> jax.Array:
    """Return times t [B] with log(t / (1 - t)) normal (Esser et al. 2024, section 3.1).

    Args:
      u: [B], uniform in [0, 1); t increases with it, so that stratified ones give stratified times.
      mean, std: of log(t / (1 - t)); pMF and JiT take 0.8 and 0.8, for a t that is 1 where there is noise alone.
    """
    mean, std = checks.number("mean", mean), checks.number("std", std, "(0, inf)")
    logit = mean + std * jax.scipy.special.ndtri(jnp.asarray(arrays.real("u", u), jnp.float32))
    return jnp.clip(jax.nn.sigmoid(logit), 2**-24, 1 - 2**-24)


def logit_normal_density(t: jax.Array, mean: float, std: float) -> jax.Array:
    """Return the density at t [B] of the times of `logit_normal` with this `mean` and `std`, [B]."""
    mean, std = checks.number("mean", mean), checks.number("std", std, "(0, inf)")
    t = jnp.clip(jnp.asarray(arrays.real("t", t), jnp.float32), 2**-24, 1 - 2**-24)
    return jax.scipy.stats.norm.pdf(jax.scipy.special.logit(t), mean, std) / (t * (1 - t))


def rate(schedule: Schedule, t: jax.Array) -> jax.Array:
    """-dlogsnr/dt of the schedule at t [B]; 0 where it is clipped or logsnr is -infinity, which weighs nothing."""
    checks.instance("schedule", schedule, Schedule, "a Schedule")
    t = jnp.asarray(arrays.real("t", t), jnp.float32)
    logsnr, slope = jax.jvp(schedule.logsnr, (t,), (jnp.ones_like(t),))
    is_end = (logsnr <= LOGSNR_MIN) | (logsnr >= LOGSNR_MAX)  # where that of log(0) times 0 is NaN
    return jnp.where(is_end & ~jnp.isfinite(slope), 0, -slope)


def denoising_loss(
    out: jax.Array, *, x: jax.Array, eps: jax.Array, logsnr_t: jax.Array, prediction: str, weight: jax.Array
) -> jax.Array:
    """Weighted mean squared error of each image: [B], float32.

    Args:
      out: [B, H, W, C] network output.
      x, eps: [B, H, W, C] clean image and the noise in z_t.
      logsnr_t, weight: [B].
      prediction: what `out` estimates.
    """
    arrays.array("out", out, least_ndim=1)
    arrays.per_image("weight", weight, "out", out)
    arrays.like("x", x, "out", out)
    error = out.astype(jnp.float32) - process.target(x, eps, logsnr_t, prediction)
    return weight * jnp.mean(error**2, axis=tuple(range(1, error.ndim)))


# Log-SNR at which the levels of noise are told apart when losses are reported.
BUCKET_EDGES = (-6.0, -2.0, 2.0, 6.0)
BUCKETS = ("..-6", "-6..-2", "-2..2", "2..6", "6..")


def by_logsnr(per_image: jax.Array, logsnr_t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of the losses [B] in each of BUCKETS, and how many there are: [K], [K]."""
    arrays.array("per_image", per_image, ndim=1)
    arrays.like("logsnr_t", logsnr_t, "per_image", per_image)
    bucket = jnp.searchsorted(jnp.asarray(BUCKET_EDGES), logsnr_t, side="right")
    is_in = jax.nn.one_hot(bucket, len(BUCKETS))  # [B, K]
    # Not a matrix product: one image's nan would be in every bucket.
    return jnp.sum(jnp.where(is_in > 0, per_image[:, None], 0), axis=0), jnp.sum(is_in, axis=0)


def _log_mse_ratio(logsnr_t: jax.Array, prediction: str) -> jax.Array:
    """log(MSE(prediction) / MSE(x))."""
    checks.choice("prediction", prediction, process.PREDICTIONS)
    edm = jnp.logaddexp(logsnr_t, -2 * jnp.log(process.SIGMA_DATA))  # 1 / c_out^2: EDM's own weight is 1
    return {
        "x": jnp.zeros_like(logsnr_t),
        "eps": logsnr_t,
        "v": jax.nn.softplus(logsnr_t),
        "edm": edm,
    }[prediction]
