"""Samplers: one scan over a grid of log-SNRs; each sampler is a small step function.

A sampler sees the model only as `denoise(z_t [B, H, W, C], logsnr_t [B]) -> x_hat`. Guidance and
thresholding are already inside it, so every update is written in x_hat, from which eps follows.
The state is float32. The last step of a stochastic sampler adds no noise.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from imagen_jax.diffusion import process
from imagen_jax.diffusion.guidance import DenoiseFn
from imagen_jax.diffusion.schedules import alpha_sigma


class Step(NamedTuple):
    """What a step knows: z_t and x_hat [B, ...], scalars logsnr_t and logsnr_s (s < t), its place."""

    z_t: jax.Array
    x_hat: jax.Array
    logsnr_t: jax.Array
    logsnr_s: jax.Array
    is_first: jax.Array
    is_last: jax.Array
    noise: jax.Array | None  # standard normal like z_t, if the sampler is stochastic


class Sampler(NamedTuple):
    """`step(step, carry) -> (z_s, carry)`; `init(z_1)` is the first carry."""

    step: Callable[[Step, Any], tuple[jax.Array, Any]]
    init: Callable[[jax.Array], Any] = lambda z_1: ()
    is_stochastic: bool = False


def sample(
    denoise: DenoiseFn,
    z_1: jax.Array,
    logsnr_grid: jax.Array,
    *,
    sampler: str | Sampler = "ddim",
    keys: jax.Array | None = None,
) -> jax.Array:
    """Integrates z from the noisiest to the last level of the grid.

    Args:
      denoise: (z_t [B, H, W, C], logsnr_t [B]) -> x_hat, float.
      z_1: [B, H, W, C] start, standard normal if the grid starts at pure noise.
      logsnr_grid: [T+1], noisiest first, increasing.
      sampler: a name in `SAMPLERS` or a `Sampler`, such as `ddpm(gamma=0)`.
      keys: [B] one key per image; needed by stochastic samplers.

    Returns:
      z at the last level, [B, H, W, C] float32: x itself if the grid ends at a clean level.
    """
    sampler = make(sampler) if isinstance(sampler, str) else sampler
    if sampler.is_stochastic and keys is None:
        raise ValueError("keys must be given to a stochastic sampler: one for each image, [B].")
    steps = logsnr_grid.shape[0] - 1
    batch = z_1.shape[0]

    def body(state, inputs):
        z_t, carry = state
        i, logsnr_t, logsnr_s = inputs
        x_hat = denoise(z_t, jnp.broadcast_to(logsnr_t, (batch,))).astype(jnp.float32)
        noise = (
            normal(jax.vmap(jax.random.fold_in, (0, None))(keys, i), z_t.shape[1:])
            if sampler.is_stochastic
            else None
        )
        state = sampler.step(Step(z_t, x_hat, logsnr_t, logsnr_s, i == 0, i == steps - 1, noise), carry)
        return state, None

    z_1 = z_1.astype(jnp.float32)
    inputs = (jnp.arange(steps), logsnr_grid[:-1], logsnr_grid[1:])
    (z_0, _), _ = jax.lax.scan(body, (z_1, sampler.init(z_1)), inputs)
    return z_0


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [B, *shape], row i from keys[i] alone: the same in any batch, on any mesh."""
    return jax.vmap(partial(jax.random.normal, shape=shape))(keys)


def make(name: str, *, ddpm_gamma: float = 0.2) -> Sampler:
    """The sampler called `name`."""
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {name!r}.")
    return ddpm(ddpm_gamma) if name == "ddpm" else SAMPLERS[name]()


def ddim() -> Sampler:
    """z_s = alpha_s x_hat + sigma_s eps_hat (Song et al. 2020, eta = 0); first order."""

    def step(s: Step, carry):
        alpha_t, sigma_t = alpha_sigma(s.logsnr_t)
        alpha_s, sigma_s = alpha_sigma(s.logsnr_s)
        return alpha_s * s.x_hat + sigma_s / sigma_t * (s.z_t - alpha_t * s.x_hat), carry

    return Sampler(step)


def ddpm(gamma: float = 0.2) -> Sampler:
    """Ancestral sampling (paper appendix A): a draw of q(z_s | z_t, x_hat) with interpolated variance.

    log variance = (1 - gamma) log((1-r) sigma_s^2) + gamma log((1-r) sigma_t^2).
    """

    def step(s: Step, carry):
        mean, lower = process.posterior(z_t=s.z_t, x=s.x_hat, logsnr_t=s.logsnr_t, logsnr_s=s.logsnr_s)
        _, sigma_t = alpha_sigma(s.logsnr_t)
        _, sigma_s = alpha_sigma(s.logsnr_s)
        std = jnp.sqrt(lower) * (sigma_t / sigma_s) ** gamma
        return mean + jnp.where(s.is_last, 0.0, std) * s.noise, carry

    return Sampler(step, is_stochastic=True)


def dpmpp_2m() -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022): second order, from the last two x_hat.

    With h = (logsnr_s - logsnr_t) / 2 and r = h_before / h,
    D = (1 + 1/(2r)) x_hat - 1/(2r) x_hat_before,   z_s = (sigma_s / sigma_t) z_t - alpha_s expm1(-h) D.
    The first step has no past, and the last goes to no noise where h is unbounded: both use D = x_hat.
    """

    def init(z_1):
        return jnp.zeros_like(z_1), jnp.ones((), jnp.float32)  # x_hat and h of the step before

    def step(s: Step, carry):
        x_before, h_before = carry
        _, sigma_t = alpha_sigma(s.logsnr_t)
        alpha_s, sigma_s = alpha_sigma(s.logsnr_s)
        h = (s.logsnr_s - s.logsnr_t) / 2
        extrapolation = jnp.where(s.is_first | s.is_last, 0.0, h / (2 * h_before))
        d = s.x_hat + extrapolation * (s.x_hat - x_before)
        return sigma_s / sigma_t * s.z_t - alpha_s * jnp.expm1(-h) * d, (s.x_hat, h)

    return Sampler(step, init)


SAMPLERS: dict[str, Callable[[], Sampler]] = {"ddpm": ddpm, "ddim": ddim, "dpmpp_2m": dpmpp_2m}
