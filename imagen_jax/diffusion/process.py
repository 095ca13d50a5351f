"""The forward process, its posterior, and conversions between x, eps and v.

    q(z_t | x)      = N(alpha_t x, sigma_t^2 I)                                            (1)
    v               = alpha_t eps - sigma_t x                                              (2)
    q(z_s | z_t, x) = N(r (alpha_s / alpha_t) z_t + (1 - r) alpha_s x, (1 - r) sigma_s^2 I) (3)
    r               = exp(logsnr_t - logsnr_s),  s < t

Images are [B, H, W, C] or any shape with a leading B; logsnr is [B] (or a scalar), float32.
"""

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.schedules import alpha_sigma

PREDICTIONS = ("x", "eps", "v")


def expand(value: jax.Array, like: jax.Array) -> jax.Array:
    """[B] or scalar -> broadcastable against `like` [B, ...]."""
    value = jnp.asarray(value, jnp.float32)
    return value.reshape(value.shape + (1,) * (like.ndim - value.ndim))


def diffuse(x: jax.Array, eps: jax.Array, logsnr_t: jax.Array) -> jax.Array:
    """A draw of q(z_t | x), equation (1), for standard normal `eps` of x's shape."""
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, x))
    return alpha_t * x + sigma_t * eps


def x_from(z_t: jax.Array, out: jax.Array, logsnr_t: jax.Array, prediction: str = "v") -> jax.Array:
    """x_hat from the network's output `out`, which estimates `prediction`."""
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    if prediction == "x":
        return out
    if prediction == "eps":
        return (z_t - sigma_t * out) / alpha_t
    if prediction == "v":
        return alpha_t * z_t - sigma_t * out
    raise _unknown(prediction)


def eps_from(z_t: jax.Array, out: jax.Array, logsnr_t: jax.Array, prediction: str = "v") -> jax.Array:
    """eps_hat from the network's output `out`, which estimates `prediction`."""
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    if prediction == "eps":
        return out
    if prediction == "x":
        return (z_t - alpha_t * out) / sigma_t
    if prediction == "v":
        return sigma_t * z_t + alpha_t * out
    raise _unknown(prediction)


def v_from(z_t: jax.Array, out: jax.Array, logsnr_t: jax.Array, prediction: str = "v") -> jax.Array:
    """v_hat from the network's output `out`, which estimates `prediction`."""
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    if prediction == "v":
        return out
    if prediction == "x":
        return (alpha_t * z_t - out) / sigma_t
    if prediction == "eps":
        return (out - sigma_t * z_t) / alpha_t
    raise _unknown(prediction)


def target(x: jax.Array, eps: jax.Array, logsnr_t: jax.Array, prediction: str) -> jax.Array:
    """What a network with this `prediction` is trained to return."""
    if prediction not in PREDICTIONS:
        raise _unknown(prediction)
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, x))
    return {"x": x, "eps": eps, "v": alpha_t * eps - sigma_t * x}[prediction]


def posterior(
    *, z_t: jax.Array, x: jax.Array, logsnr_t: jax.Array, logsnr_s: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(mean [B, ...], variance broadcastable to it) of q(z_s | z_t, x), equation (3)."""
    alpha_t, _ = alpha_sigma(expand(logsnr_t, z_t))
    alpha_s, sigma_s = alpha_sigma(expand(logsnr_s, z_t))
    difference = expand(logsnr_t, z_t) - expand(logsnr_s, z_t)
    r, one_minus_r = jnp.exp(difference), -jnp.expm1(difference)
    mean = r * (alpha_s / alpha_t) * z_t + one_minus_r * alpha_s * x
    return mean, one_minus_r * sigma_s**2


def _unknown(prediction: str) -> ValueError:
    return ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}; got {prediction!r}.")
