"""The forward process, its posterior, and conversions between x, eps, v and EDM's preconditioned output.

    q(z_t | x)      = N(alpha_t x, sigma_t^2 I)                                            (1)
    v               = alpha_t eps - sigma_t x                                              (2)
    q(z_s | z_t, x) = N(r (alpha_s / alpha_t) z_t + (1 - r) alpha_s x, (1 - r) sigma_s^2 I) (3)
    r               = exp(logsnr_t - logsnr_s),  s < t
    q(z_t | z_s)    = N((alpha_t / alpha_s) z_s, (1 - r) sigma_t^2 I)                      (4)

"edm" is the output F of a preconditioned network (Karras et al. 2022, table 1). In these variables, with d the
standard deviation of the data and n = sigma_t^2 + d^2 alpha_t^2, the variance of z_t,

    x = d^2 alpha_t / n z_t + d sigma_t / sqrt(n) F,   the network sees z_t / sqrt(n).     (5)

All of it is finite at alpha_t = 0 (logsnr -infinity), except x from eps.

Images are [B, H, W, C] or any shape with a leading B; logsnr is [B] (or a scalar), float32.
"""

import jax
import jax.numpy as jnp

from imagen_jax import arrays
from imagen_jax.checks import choice
from imagen_jax.diffusion.schedules import alpha_sigma

PREDICTIONS = ("x", "eps", "v", "edm")
SIGMA_DATA = 0.5  # d in equation (5)


def expand(value: jax.Array, like: jax.Array) -> jax.Array:
    """[B] or scalar -> broadcastable against `like` [B, ...]."""
    arrays.per_image("value", value, "like", arrays.array("like", like))
    value = jnp.asarray(value, jnp.float32)
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def _check(images: dict[str, jax.Array], levels: dict[str, jax.Array]) -> None:
    """Images of one shape, with one level for each or for all."""
    (first, like), *others = images.items()
    arrays.array(first, like)
    for name, value in others:
        arrays.like(name, value, first, like)
    for name, value in levels.items():
        arrays.per_image(name, value, first, like)


def diffuse(x: jax.Array, eps: jax.Array, logsnr_t: jax.Array) -> jax.Array:
    """A draw of q(z_t | x), equation (1): z_t [B, H, W, C] for standard normal `eps` of x's shape, logsnr_t [B]."""
    _check({"x": x, "eps": eps}, {"logsnr_t": logsnr_t})
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, x))
    return alpha_t * x + sigma_t * eps


def x_from(z_t: jax.Array, out: jax.Array, logsnr_t: jax.Array, prediction: str = "v") -> jax.Array:
    """x_hat from z_t and the network's output `out` at logsnr_t [B], which estimates `prediction`."""
    _check({"z_t": z_t, "out": out}, {"logsnr_t": logsnr_t})
    choice("prediction", prediction, PREDICTIONS)
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    if prediction == "x":
        return out
    if prediction == "eps":
        return (z_t - sigma_t * out) / alpha_t
    if prediction == "v":
        return alpha_t * z_t - sigma_t * out
    n = _variance(alpha_t, sigma_t)
    return SIGMA_DATA**2 * alpha_t / n * z_t + SIGMA_DATA * sigma_t / jnp.sqrt(n) * out


def eps_from(z_t: jax.Array, out: jax.Array, logsnr_t: jax.Array, prediction: str = "v") -> jax.Array:
    """eps_hat from z_t and the network's output `out` at logsnr_t [B], which estimates `prediction`."""
    _check({"z_t": z_t, "out": out}, {"logsnr_t": logsnr_t})
    choice("prediction", prediction, PREDICTIONS)
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    if prediction == "eps":
        return out
    if prediction == "x":
        return (z_t - alpha_t * out) / sigma_t
    if prediction == "v":
        return sigma_t * z_t + alpha_t * out
    n = _variance(alpha_t, sigma_t)
    return sigma_t / n * z_t - SIGMA_DATA * alpha_t / jnp.sqrt(n) * out


def v_from(z_t: jax.Array, out: jax.Array, logsnr_t: jax.Array, prediction: str = "v") -> jax.Array:
    """v_hat from z_t and the network's output `out` at logsnr_t [B], which estimates `prediction`."""
    _check({"z_t": z_t, "out": out}, {"logsnr_t": logsnr_t})
    choice("prediction", prediction, PREDICTIONS)
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    if prediction == "v":
        return out
    if prediction == "x":
        return (alpha_t * z_t - out) / sigma_t
    if prediction == "eps":
        return (out - sigma_t * z_t) / alpha_t
    n = _variance(alpha_t, sigma_t)
    return (1 - SIGMA_DATA**2) * alpha_t * sigma_t / n * z_t - SIGMA_DATA / jnp.sqrt(n) * out


def target(x: jax.Array, eps: jax.Array, logsnr_t: jax.Array, prediction: str) -> jax.Array:
    """What a network with this `prediction` is trained to return for z_t made of x and eps at logsnr_t [B]."""
    _check({"x": x, "eps": eps}, {"logsnr_t": logsnr_t})
    choice("prediction", prediction, PREDICTIONS)
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, x))
    n = _variance(alpha_t, sigma_t)
    edm = (sigma_t * x - SIGMA_DATA**2 * alpha_t * eps) / (SIGMA_DATA * jnp.sqrt(n))
    return {"x": x, "eps": eps, "v": alpha_t * eps - sigma_t * x, "edm": edm}[prediction]


def network_scale(logsnr_t: jax.Array, prediction: str) -> jax.Array:
    """The factor on z_t before it enters the network: 1, or c_in of equation (5); like logsnr_t."""
    arrays.real("logsnr_t", logsnr_t)
    choice("prediction", prediction, PREDICTIONS)
    if prediction != "edm":
        return jnp.ones_like(jnp.asarray(logsnr_t, jnp.float32))
    return jax.lax.rsqrt(_variance(*alpha_sigma(logsnr_t)))


def renoise(z_s: jax.Array, eps: jax.Array, *, logsnr_s: jax.Array, logsnr_t: jax.Array) -> jax.Array:
    """A draw of q(z_t | z_s), equation (4): from z_s at logsnr_s to the noisier logsnr_t, for standard normal `eps`."""
    _check({"z_s": z_s, "eps": eps}, {"logsnr_s": logsnr_s, "logsnr_t": logsnr_t})
    arrays.at_most("logsnr_t", logsnr_t, "logsnr_s", logsnr_s)
    alpha_s, _ = alpha_sigma(expand(logsnr_s, z_s))
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_s))
    variance = -jnp.expm1(expand(logsnr_t, z_s) - expand(logsnr_s, z_s)) * sigma_t**2
    return alpha_t / alpha_s * z_s + jnp.sqrt(variance) * eps


def posterior(
    *, z_t: jax.Array, x: jax.Array, logsnr_t: jax.Array, logsnr_s: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(mean [B, ...], variance broadcastable to it) of q(z_s | z_t, x), equation (3); z_t is at logsnr_t, z_s at the
    cleaner logsnr_s."""
    _check({"z_t": z_t, "x": x}, {"logsnr_t": logsnr_t, "logsnr_s": logsnr_s})
    arrays.at_most("logsnr_t", logsnr_t, "logsnr_s", logsnr_s)
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    alpha_s, sigma_s = alpha_sigma(expand(logsnr_s, z_t))
    one_minus_r = -jnp.expm1(expand(logsnr_t, z_t) - expand(logsnr_s, z_t))
    # r alpha_s / alpha_t, written so that it is 0 and not 0 / 0 where alpha_t is 0
    mean = alpha_t * sigma_s**2 / (sigma_t**2 * alpha_s) * z_t + one_minus_r * alpha_s * x
    return mean, one_minus_r * sigma_s**2


def _variance(alpha_t: jax.Array, sigma_t: jax.Array) -> jax.Array:
    """n of equation (5)."""
    return sigma_t**2 + SIGMA_DATA**2 * alpha_t**2
