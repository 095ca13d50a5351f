"""Denoisers: functions (z_t [B, H, W, C], logsnr_t [B]) -> x_hat or `Estimate`, with or without a state."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from imagen_jax.checks import require

DenoiseFn = Callable[[jax.Array, jax.Array], Any]


class Estimate(NamedTuple):
    """What a denoiser may return instead of x_hat.

    Attributes:
      x: [B, H, W, C] x_hat.
      noise_x: [B, H, W, C] estimate from which eps_hat is taken, if not from x (CFG++).
      log_variance: [B, H, W, C] where the log-variance of q(z_s | z_t) lies between its bounds: 0 is the lower,
        log((1-r) sigma_s^2), and 1 the upper, log((1-r) sigma_t^2) (v of Nichol & Dhariwal 2021, equation 15).
    """

    x: jax.Array
    noise_x: jax.Array | None = None
    log_variance: jax.Array | None = None


class Stateful(NamedTuple):
    """A denoiser with a state, which samplers carry from step to step.

    Attributes:
      init: z_1 -> the first state.
      call: (z_t, logsnr_t, state) -> (x_hat or `Estimate`, state).
    """

    init: Callable[[jax.Array], Any]
    call: Callable[[jax.Array, jax.Array, Any], tuple[Any, Any]]


Denoiser = DenoiseFn | Stateful


def as_estimate(out: Any) -> Estimate:
    """Return what a denoiser returned as an `Estimate`."""
    return out if isinstance(out, Estimate) else Estimate(out)


def then(
    denoise: Denoiser, function: Callable[[jax.Array], jax.Array], *, noise_too: bool = False
) -> Denoiser:
    """Return the denoiser that applies `function`, such as a threshold, to what `denoise` returns.

    Args:
      denoise: (z_t, logsnr_t) -> x_hat [B, H, W, C] or `Estimate`, or a `Stateful`.
      function: x_hat -> x_hat, [B, H, W, C].
      noise_too: apply it to `noise_x` of an `Estimate` as well. `log_variance` is passed on as it is.
    """
    check_denoiser(denoise)
    require(callable(function), "function", "be a function of x_hat", function)

    def apply(out: Any) -> Any:
        if not isinstance(out, Estimate):
            return function(out)
        has_noise = noise_too and out.noise_x is not None
        return out._replace(x=function(out.x), noise_x=function(out.noise_x) if has_noise else out.noise_x)

    if isinstance(denoise, Stateful):

        def call(z_t: jax.Array, logsnr_t: jax.Array, state: Any) -> tuple[Any, Any]:
            out, state = denoise.call(z_t, logsnr_t, state)
            return apply(out), state

        return Stateful(denoise.init, call)
    return lambda z_t, logsnr_t: apply(denoise(z_t, logsnr_t))


def check_denoiser(denoise: Denoiser) -> None:
    """Raise a ValueError for what is no denoiser."""
    functions = denoise if isinstance(denoise, Stateful) else (denoise,)
    is_right = all(map(callable, functions))
    require(is_right, "denoise", "be a function of (z_t, logsnr_t), or Stateful with two functions", denoise)
