"""Noise schedules of the variance-preserving process, in log-SNR.

    z_t = alpha_t x + sigma_t eps,   alpha_t^2 + sigma_t^2 = 1,   logsnr = log(alpha_t^2 / sigma_t^2)

A schedule maps the time t in [0, 1] (1 is noise) to logsnr, decreasing, clipped to
[LOGSNR_MIN, LOGSNR_MAX], and has an inverse on that range; `zero_terminal` alone reaches -infinity. A process in
EDM's variables, y = x + S eps, is the same one: S = sigma_t / alpha_t = exp(-logsnr / 2), y = z_t / alpha_t.
"""

import functools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import arrays, methods
from imagen_jax.checks import MAX_STEPS, Verbatim, instance, is_finite, number, require, shown, whole
from imagen_jax.diffusion.spacings import SPACINGS, Spacing
from imagen_jax.registry import Registry

# sigma (or alpha) is 4.5e-5 at the ends: below the step of 8-bit pixels, far above float32's underflow.
LOGSNR_MIN, LOGSNR_MAX = -20.0, 20.0

# Integral of beta(t) = 0.1 + 19.9 t: the paper's 1000 steps of beta from 1e-4 to 0.02, in continuous time.
_BETA_MIN, _BETA_SPAN = 0.1, 19.9


# Each a function of the image side in pixels. `@SCHEDULES.register("mine")` makes a name for configurations.
SCHEDULES = Registry("schedule")


class Schedule(NamedTuple):
    """A noise schedule: `logsnr(t)` and `inverse(logsnr)` -> t, both elementwise, float32."""

    logsnr: Callable[[jax.Array], jax.Array]
    inverse: Callable[[jax.Array], jax.Array]


def make(name: str, size: int = 64) -> Schedule:
    """Return the schedule `name` of `SCHEDULES`; `size`, the image side in pixels, shifts some of them."""
    return SCHEDULES[name](_positive("size", size))


def from_function(logsnr: Callable[[jax.Array], jax.Array]) -> Schedule:
    """Return the schedule of a decreasing function logsnr(t), elementwise and jittable, with an inverse by bisection.

    Values are clipped to [LOGSNR_MIN, LOGSNR_MAX]. `SCHEDULES.register("mine")(lambda size: from_function(f))` makes
    it a name that configurations can use.

    Raises:
      ValueError: logsnr(t) is not finite, or does not decrease from t = 0 to t = 1.
    """
    require(callable(logsnr), "logsnr", "be a function of t", logsnr)
    clipped = lambda t: _clip(_reals("logsnr(t)", logsnr(_reals("t", t))))
    with jax.ensure_compile_time_eval():
        values = np.asarray(clipped(jnp.linspace(0, 1, 257)))
    require(values.shape == (257,), "logsnr(t)", "have the shape of t, [257]", Verbatim(values.shape))
    is_falling = np.isfinite(values).all() and (np.diff(values) <= 0).all() and values[0] > values[-1]
    rule = "be finite and decrease from t = 0 to t = 1 (1 is noise)"
    require(bool(is_falling), "logsnr(t)", rule, Verbatim(f"{values[0]:g} to {values[-1]:g}"))
    return Schedule(clipped, partial(_bisect, clipped))


def alpha_sigma(logsnr: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (alpha, sigma) of logsnr, float32 of its shape, each from its own sigmoid, exact where it is small."""
    logsnr = _reals("logsnr", logsnr)
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def cosine(t: jax.Array) -> jax.Array:
    """Return logsnr(t) = -2 log tan(pi t / 2), i.e. alpha_t = cos(pi t / 2) (Nichol & Dhariwal 2021, s = 0)."""
    t = _reals("t", t)
    u = jnp.where(t <= 0.5, t, 1 - t)  # antisymmetric about t = 1/2: keeps full precision near t = 1
    u = jnp.maximum(u, 1e-6)  # changes only levels that are clipped, but log(0) would make their derivative NaN
    logsnr = -2 * jnp.log(jnp.tan(jnp.pi / 2 * u))
    return _clip(jnp.where(t <= 0.5, logsnr, -logsnr))


def cosine_inverse(logsnr: jax.Array) -> jax.Array:
    """Return t with cosine(t) = logsnr."""
    return 2 / jnp.pi * jnp.arctan(jnp.exp(-_reals("logsnr", logsnr) / 2))


def linear(t: jax.Array) -> jax.Array:
    """Return logsnr(t) = -log(expm1(0.1 t + 9.95 t^2)): beta is linear (256 -> 1024 stage of Imagen)."""
    t = _reals("t", t)
    return _clip(-jnp.log(jnp.expm1(_BETA_MIN * t + _BETA_SPAN / 2 * t**2)))


def linear_inverse(logsnr: jax.Array) -> jax.Array:
    """Return t with linear(t) = logsnr: the root of the quadratic, in its form without cancellation."""
    integral = jax.nn.softplus(-_reals("logsnr", logsnr))
    return 2 * integral / (_BETA_MIN + jnp.sqrt(_BETA_MIN**2 + 2 * _BETA_SPAN * integral))


def shifted_cosine(t: jax.Array, size: int = 256) -> jax.Array:
    """Return cosine(t) + 2 log(64 / size): the same noise at 64x64 after averaging.

    Args:
      t: [...] in [0, 1].
      size: side of the image in pixels. (Hoogeboom et al. 2023, equation 4.)
    """
    return _clip(cosine(t) + 2 * np.log(64 / _positive("size", size)))


def shifted_cosine_inverse(logsnr: jax.Array, size: int = 256) -> jax.Array:
    """Return t with shifted_cosine(t, size) = logsnr."""
    return cosine_inverse(_reals("logsnr", logsnr) - 2 * np.log(64 / _positive("size", size)))


def interpolated_cosine(t: jax.Array, size: int = 256, low: int = 32, high: int = 256) -> jax.Array:
    """Return cosine(t) + 2 [t log(low / size) + (1 - t) log(high / size)] (Hoogeboom et al. 2023, section 3.1).

    Args:
      t: [...] in [0, 1].
      size: side of the image in pixels.
      low, high: the sizes that the schedule is shifted from at the noisy and at the clean end.
    """
    t = _reals("t", t)
    for name, value in {"size": size, "low": low, "high": high}.items():
        _positive(name, value)
    return _clip(cosine(t) + 2 * (t * np.log(low / size) + (1 - t) * np.log(high / size)))


def interpolated_cosine_inverse(
    logsnr: jax.Array, size: int = 256, low: int = 32, high: int = 256
) -> jax.Array:
    """Return t with interpolated_cosine(t, size, low, high) = logsnr, by bisection."""
    return _bisect(partial(interpolated_cosine, size=size, low=low, high=high), logsnr)


def sigmoid(t: jax.Array, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> jax.Array:
    """Return logsnr for alpha_t^2 a sigmoid from `start` to `end`, scaled to go from 1 to 0 (Jabri et al. 2022).

    With d = (end - start) / (2 tau) the logsnr is log sinh((1 - t) d) - log sinh(t d) + constant.
    """
    t = _reals("t", t)
    d, constant = _sigmoid_constants(start, end, tau)
    return _clip(jnp.log(jnp.sinh((1 - t) * d)) - jnp.log(jnp.sinh(t * d)) + constant)


def sigmoid_inverse(logsnr: jax.Array, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> jax.Array:
    """Return t with sigmoid(t, start, end, tau) = logsnr: tanh(t d) = sinh(d) / (exp(logsnr - constant) + cosh(d))."""
    d, constant = _sigmoid_constants(start, end, tau)
    ratio = np.sinh(d) / (jnp.exp(_reals("logsnr", logsnr) - constant) + np.cosh(d))
    return jnp.arctanh(ratio) / d


def _sigmoid_constants(start: float, end: float, tau: float) -> tuple[float, float]:
    number("start", start, "[-50, 50]")
    number("end", end, f"({start:g}, 50]")
    number("tau", tau, "[0.1, 100]")
    return (end - start) / (2 * tau), float(np.log(np.cosh(start / tau / 2) / np.cosh(end / tau / 2)))


def edm(t: jax.Array, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> jax.Array:
    """Return -2 log S(t), S^(1/rho) linear in t from sigma_min to sigma_max (Karras et al. 2022, equation 5)."""
    t = _reals("t", t)
    low, high = _edm_ends(sigma_min, sigma_max, rho)
    return _clip(-2 * rho * jnp.log(low + t * (high - low)))


def edm_inverse(
    logsnr: jax.Array, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> jax.Array:
    """Return t with edm(t, sigma_min, sigma_max, rho) = logsnr."""
    low, high = _edm_ends(sigma_min, sigma_max, rho)
    return (jnp.exp(-_reals("logsnr", logsnr) / (2 * rho)) - low) / (high - low)


def _edm_ends(sigma_min: float, sigma_max: float, rho: float) -> tuple[float, float]:
    _positive("sigma_max", sigma_max)
    is_right = is_finite(sigma_min) and 0 < sigma_min < sigma_max
    got = Verbatim(f"{shown(sigma_min)} and {shown(sigma_max)}")
    require(is_right, "sigma_min", "be positive and below sigma_max", got)
    rho = number("rho", rho, "[0.1, 1000]")
    return float(sigma_min) ** (1 / rho), float(sigma_max) ** (1 / rho)


def lognormal(t: jax.Array, mean: float = -1.2, std: float = 1.2) -> jax.Array:
    """Return logsnr with log S ~ N(mean, std^2) for uniform t, as EDM trains (Karras et al. 2022, table 1)."""
    t = _reals("t", t)
    number("mean", mean, "[-50, 50]")
    return _clip(-2 * (mean + _positive("std", std) * jax.scipy.special.ndtri(t)))


def lognormal_inverse(logsnr: jax.Array, mean: float = -1.2, std: float = 1.2) -> jax.Array:
    """Return t with lognormal(t, mean, std) = logsnr."""
    number("mean", mean, "[-50, 50]")
    return jax.scipy.special.ndtr((-_reals("logsnr", logsnr) / 2 - mean) / _positive("std", std))


def zero_terminal(schedule: Schedule) -> Schedule:
    """Return a schedule with alpha stretched so that t = 1 is pure noise, logsnr -infinity (Lin et al. 2023).

    alpha' = (alpha - alpha(1)) alpha(0) / (alpha(0) - alpha(1)). Needs prediction "x", "v" or "edm": eps says
    nothing about x there.
    """
    _check_schedule(schedule)
    with jax.ensure_compile_time_eval():
        ends = alpha_sigma(schedule.logsnr(jnp.array([0.0, 1.0])))
    (_, alpha_1), (sigma_0, _) = np.asarray(ends, np.float64)
    alpha_0 = np.sqrt(1 - sigma_0**2)
    stretch = alpha_0 / (alpha_0 - alpha_1)

    # 1 - alpha is carried beside alpha, since it vanishes towards t = 0 and alpha towards t = 1.
    def logsnr(t: jax.Array) -> jax.Array:
        alpha, sigma = alpha_sigma(schedule.logsnr(t))
        below = (sigma - sigma_0) * (sigma + sigma_0) / (alpha_0 + alpha)  # alpha_0 - alpha
        return _logsnr(alpha=(alpha - alpha_1) * stretch, missing=1 - alpha_0 + stretch * below)

    def inverse(value: jax.Array) -> jax.Array:
        alpha, sigma = alpha_sigma(value)
        below = (sigma**2 / (1 + alpha) - (1 - alpha_0)) / stretch
        return schedule.inverse(_logsnr(alpha=alpha / stretch + alpha_1, missing=1 - alpha_0 + below))

    return Schedule(logsnr, inverse)


def _logsnr(*, alpha: jax.Array, missing: jax.Array) -> jax.Array:
    """Return 2 log alpha - log(1 - alpha^2) for missing = 1 - alpha."""
    alpha, missing = jnp.maximum(alpha, 0), jnp.maximum(missing, np.exp(-LOGSNR_MAX) / 2)
    return jnp.minimum(2 * jnp.log(alpha) - jnp.log(missing) - jnp.log1p(alpha), LOGSNR_MAX)


def grid(
    schedule: Schedule, steps: int, spacing: str | Spacing = "t", *, start: float = 1.0, **options: float
) -> jax.Array:
    """Return the levels to sample on: logsnr [steps + 1], noisiest first, ending at a clean level.

    Args:
      schedule: of the process.
      steps: T, from 1 to 10,000.
      spacing: a name in `SPACINGS`, or a `Spacing`.
      start: time to start from in (0, 1]; below 1 for image-to-image.
      **options: of the spacing called by its name: sigma_min and sigma_max of "logsnr" and "rho", and rho.

    Raises:
      ValueError: an argument out of its range, or levels that are equal in float32.
    """
    _check_schedule(schedule)
    steps = whole("steps", steps, 1, MAX_STEPS)
    is_name = isinstance(spacing, str)
    got = Verbatim(f"{type(spacing).__name__} and {', '.join(options)}")
    require(is_name or not options, "options", "be given with the name of a spacing", got, "set them in it")
    spacing = methods.make(SPACINGS, spacing, options) if is_name else spacing
    instance("spacing", spacing, Spacing, f"a Spacing or one of {', '.join(SPACINGS)}")
    start = number("start", start, "(0, 1]")
    levels = unchecked_grid(schedule, steps, spacing, start)
    values = arrays.known(levels)
    is_falling = values is None or bool((np.diff(values) > 0).all())
    rule = "have levels that differ in float32"
    fix = "take fewer steps, a larger start, or a spacing inside the schedule"
    require(is_falling, f"a grid of {steps} steps", rule, Verbatim("some that are equal"), fix)
    return levels


def unchecked_grid(schedule: Schedule, steps: int, spacing: Spacing, start: float) -> jax.Array:
    """Return the levels of `grid`, some of which may be equal in float32."""
    spacing.check_range(steps, start)
    return jnp.append(spacing.levels(schedule, steps, start), LOGSNR_MAX)


def from_table(logsnr: jax.Array) -> Schedule:
    """Return the schedule of the levels of a discretely trained network.

    Args:
      logsnr: [N] decreasing; entry i is the level at t = (i + 1) / N. Of a table of products of alphas it is
        log(product) - log(1 - product). In between it is interpolated linearly; below t = 1 / N it is the first entry.
    """
    levels = arrays.known(arrays.array("logsnr", logsnr, "floats", ndim=1))
    require(levels is not None, "logsnr", "be an array whose values are known", logsnr, "make it outside jit")
    is_falling = len(levels) > 1 and np.isfinite(levels).all() and (np.diff(levels) < 0).all()
    require(bool(is_falling), "logsnr", "be at least 2 finite levels that decrease (t = 1 is noise)", logsnr)
    levels = np.clip(np.asarray(levels, np.float32), LOGSNR_MIN, LOGSNR_MAX)
    times = (np.arange(len(levels), dtype=np.float32) + 1) / len(levels)
    return Schedule(
        lambda t: jnp.interp(_reals("t", t), times, levels),
        lambda logsnr: jnp.interp(-_reals("logsnr", logsnr), -levels, times),
    )


@functools.cache
def _discrete_cosine(num_steps: int = 1000, largest_beta: float = 0.999) -> Schedule:
    """Return the cosine schedule of discretely trained networks (Nichol & Dhariwal 2021, equation 17, s = 0.008).

    Betas and products are rounded to float32 where published code rounds them.
    """
    place = (np.arange(num_steps + 1) / num_steps + 0.008) / 1.008
    f = np.cos(place * np.pi / 2) ** 2
    beta = np.minimum(1 - f[1:] / f[:-1], largest_beta).astype(np.float32)
    product = np.cumprod((1 - beta).astype(np.float64)).astype(np.float32).astype(np.float64)
    return from_table(np.log(product) - np.log1p(-product))


def _bisect(decreasing: Callable[[jax.Array], jax.Array], value: jax.Array) -> jax.Array:
    """Return t in [0, 1] with decreasing(t) = value, to the resolution of float32."""
    value = _reals("logsnr", value)

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        too_clean = decreasing(middle) > value
        return jnp.where(too_clean, middle, low), jnp.where(too_clean, high, middle)

    low, high = jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(value), jnp.ones_like(value)))
    return (low + high) / 2


def _reals(name: str, value: jax.Array) -> jax.Array:
    """Return numbers as float32."""
    return jnp.asarray(arrays.real(name, value), jnp.float32)


def _positive(name: str, value: float) -> float:
    return number(name, value, "(0, inf)")


def _check_schedule(schedule: Schedule) -> None:
    is_schedule = isinstance(schedule, Schedule) and all(map(callable, schedule))
    fix = "make one with schedules.make" if isinstance(schedule, str) else ""
    require(is_schedule, "schedule", "be a Schedule", schedule, fix)


def _clip(logsnr: jax.Array) -> jax.Array:
    return jnp.clip(logsnr, LOGSNR_MIN, LOGSNR_MAX)


for _name, _pair in {
    "cosine": (cosine, cosine_inverse),
    "linear": (linear, linear_inverse),
    "sigmoid": (sigmoid, sigmoid_inverse),
    "edm": (edm, edm_inverse),
    "lognormal": (lognormal, lognormal_inverse),
}.items():
    SCHEDULES.register(_name)(lambda size, pair=_pair: Schedule(*pair))
for _name, _pair in {
    "shifted_cosine": (shifted_cosine, shifted_cosine_inverse),
    "interpolated_cosine": (interpolated_cosine, interpolated_cosine_inverse),
}.items():
    SCHEDULES.register(_name)(lambda size, pair=_pair: Schedule(*(partial(each, size=size) for each in pair)))
SCHEDULES.register("discrete_cosine")(lambda size: _discrete_cosine())
