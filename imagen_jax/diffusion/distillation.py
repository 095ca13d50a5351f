"""One step in place of several: the x of a DDIM step that ends where several DDIM steps end.

With r = alpha / sigma = exp(logsnr / 2), a DDIM step from t to s with the estimate x_hat is

    z_s / sigma_s = z_t / sigma_t + (r_s - r_t) x_hat,                                     (1)

so that steps over the levels t_0 (noisiest), t_1, ..., t_K with estimates x_1, ..., x_K end where one step does with

    x = sum_i w_i x_i,   w_i = (r_i - r_(i-1)) / (r_K - r_0),                              (2)

a weighted mean, since r increases. It is the target of Salimans & Ho (2022), appendix G, for two steps,
(z_s - sigma_s / sigma_t z_t) / (alpha_s - sigma_s / sigma_t alpha_t), without its difference of nearly equal numbers.
"""

import jax
import jax.numpy as jnp

from imagen_jax import arrays
from imagen_jax.diffusion.denoisers import DenoiseFn, as_estimate
from imagen_jax.diffusion.process import expand
from imagen_jax.diffusion.schedules import alpha_sigma


def weights(levels: jax.Array) -> jax.Array:
    """Return w of equation (2), [K, B] float32: not negative, of sum 1 over K.

    Args:
      levels: [K+1, B] logsnr, noisiest first. Levels may be equal, but the last one is above the first.
    """
    levels = jnp.asarray(arrays.array("levels", levels, "floats", ndim=2), jnp.float32)
    first, last, before, after = levels[:1], levels[-1:], levels[:-1], levels[1:]
    # Differences r_i - r_(i-1) = -r_i expm1(...), over r_K; a first level of -infinity has r = 0.
    gained = -jnp.exp((after - last) / 2) * jnp.expm1((before - after) / 2)
    return gained / -jnp.expm1((first - last) / 2)


def ddim(z_t: jax.Array, x_hat: jax.Array, logsnr_t: jax.Array, logsnr_s: jax.Array) -> jax.Array:
    """Return z_s [B, H, W, C] of a deterministic DDIM step, equation (1), from z_t at logsnr_t [B] to logsnr_s [B]."""
    alpha_t, sigma_t = alpha_sigma(expand(logsnr_t, z_t))
    alpha_s, sigma_s = alpha_sigma(expand(logsnr_s, z_t))
    return alpha_s * x_hat + sigma_s / sigma_t * (z_t - alpha_t * x_hat)


def joined(denoise: DenoiseFn, z_t: jax.Array, levels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (x, z_s), both [B, H, W, C]: the x of one DDIM step that ends where K steps with `denoise` end, and there.

    Args:
      denoise: (z_t [B, H, W, C], logsnr_t [B]) -> x_hat or `Estimate`. It is traced once.
      z_t: [B, H, W, C] at the first level.
      levels: [K+1, B] logsnr, noisiest first; K is at least 1.
    """

    def step(carry: tuple[jax.Array, jax.Array], inputs: tuple[jax.Array, ...]) -> tuple[tuple, None]:
        (z_t, x), (logsnr_t, logsnr_s, weight) = carry, inputs
        x_hat = as_estimate(denoise(z_t, logsnr_t)).x.astype(jnp.float32)
        return (ddim(z_t, x_hat, logsnr_t, logsnr_s), x + expand(weight, x) * x_hat), None

    z_t = jnp.asarray(z_t, jnp.float32)
    (z_s, x), _ = jax.lax.scan(step, (z_t, jnp.zeros_like(z_t)), (levels[:-1], levels[1:], weights(levels)))
    return x, z_s


def consistent(teacher: DenoiseFn, student: DenoiseFn, z_t: jax.Array, levels: jax.Array) -> jax.Array:
    """Return x [B, H, W, C] of a step from z_t to the last level: a step of the teacher, the rest one of the student.

    A student that equals it at every level ends where the teacher's steps over all levels end: before the last of them
    it is the teacher's estimate, and so on towards noise. (Heek et al. 2024, algorithm 1.)

    Args:
      teacher, student: (z_t [B, H, W, C], logsnr_t [B]) -> x_hat or `Estimate`.
      z_t: [B, H, W, C] at the first level.
      levels: [3, B] logsnr: of z_t, after the teacher's step, and at the end; the second may equal the third.
    """
    logsnr_t, logsnr_s, _ = levels
    x_teacher = as_estimate(teacher(z_t, logsnr_t)).x.astype(jnp.float32)
    z_s = ddim(z_t, x_teacher, logsnr_t, logsnr_s)
    x_student = as_estimate(student(z_s, logsnr_s)).x.astype(jnp.float32)
    first, rest = weights(levels)
    return expand(first, z_t) * x_teacher + expand(rest, z_t) * x_student


def moved(x: jax.Array, x_teacher: jax.Array, x_student: jax.Array) -> jax.Array:
    """Return zeros [B] whose gradient with respect to `x` moves it from the student's mean towards the teacher's.

    It is the mean over the picture of (x_student - x_teacher) / mean |x - x_teacher|, whose size is about the same at
    all levels (Yin et al. 2024, arXiv 2311.18828, equation 8). Differences below a level of 8 bits do not count more.

    Args:
      x: [B, H, W, C] what the student has made.
      x_teacher, x_student: [B, H, W, C] means of x, given x noised: the teacher's, and the student's own.
    """
    x_teacher, x_student, at = jax.lax.stop_gradient((x_teacher, x_student, x))
    size = jnp.mean(jnp.abs(at - x_teacher), axis=(1, 2, 3), keepdims=True)
    direction = (x_student - x_teacher) / jnp.maximum(size, 1 / 255)
    return jnp.mean((x - at) * direction, axis=(1, 2, 3))
