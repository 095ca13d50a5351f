"""The scan over a grid of log-SNRs that every sampler is a step of. The state is float32."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import arrays
from imagen_jax.checks import Verbatim, boolean, error, instance, require, whole
from imagen_jax.diffusion import process
from imagen_jax.diffusion.denoisers import Denoiser, Stateful, as_estimate, check_denoiser
from imagen_jax.diffusion.samplers.sampler import SAMPLERS, Sampler, Step
from imagen_jax.diffusion.schedules import alpha_sigma


class Info(NamedTuple):
    """What `sample` knows besides the images.

    Attributes:
      broken_at: [B] the step (from 1) of the first estimate with NaN or infinity, 0 if there was none.
      x_hats: [T, B, H, W, C] the estimates of all steps, if asked for; with `resample` as many times, and with a
        final estimate one more.
    """

    broken_at: jax.Array
    x_hats: jax.Array | None


def sample(
    denoise: Denoiser,
    z_1: jax.Array,
    logsnr_grid: jax.Array,
    *,
    sampler: str | Sampler = "ddim",
    keys: jax.Array | None = None,
    resample: int = 1,
    jump: int = 1,
    return_info: bool = False,
    trajectory: bool = False,
    callback: Callable[[jax.Array, jax.Array], None] | None = None,
) -> Any:
    """Integrates z from the noisiest to the last level of the grid.

    With `Sampler.final_logsnr` z is then taken for x, and alpha x is denoised at this level: step T + 1. This removes
    errors up to the size of the noise at that level, and details of that size as well. (An ascent towards likelier
    images without noise, Kadkhodaie & Simoncelli 2020, arXiv 2007.13640, in a single step.)

    Args:
      denoise: (z_t [B, H, W, C], logsnr_t [B]) -> x_hat or `Estimate`, float; or a `Stateful`.
      z_1: [B, H, W, C] start, standard normal if the grid starts at pure noise.
      logsnr_grid: [T+1], noisiest first, increasing.
      sampler: a name in `SAMPLERS` or a `Sampler`, such as `DDPM(gamma=0)`.
      keys: [B] one key per image; needed by stochastic samplers and by `resample`.
      resample: times that each group of `jump` steps is run, with noise added in between to return
        to its start (RePaint, Lugmayr et al. 2022); for inpainting.
      return_info: also return `Info`.
      trajectory: keep the estimates of all steps in `Info`.
      callback: called on the host with (step from 1, x_hat) after every step, in order.

    Returns:
      z at the last level, [B, H, W, C] float32: x itself if the grid ends at a clean level. With a final_logsnr the
      estimate made there. With return_info (that, Info).
    """
    sampler = SAMPLERS[sampler]() if isinstance(sampler, str) else sampler
    instance("sampler", sampler, Sampler, f"a Sampler or one of {', '.join(SAMPLERS)}")
    check_denoiser(denoise)
    arrays.array("z_1", z_1, least_ndim=1)
    arrays.finite("z_1", z_1, "noise")
    check_grid(logsnr_grid)
    logsnr_grid = jnp.asarray(logsnr_grid, jnp.float32)
    whole("resample", resample, 1)
    whole("jump", jump, 1)
    require(jump == 1 or resample > 1, "jump", "be 1 without resample", jump)
    return_info, trajectory = boolean("return_info", return_info), boolean("trajectory", trajectory)
    rule = "be False without return_info, which holds it"
    require(return_info or not trajectory, "trajectory", rule, trajectory)
    require(callback is None or callable(callback), "callback", "be a function of (step, x_hat)", callback)
    if sampler.is_stochastic or resample > 1:
        why = "a stochastic sampler" if sampler.is_stochastic else "resample > 1"
        require(keys is not None, "keys", f"be given to {why}: one for each image, [B]", keys)
        arrays.keys("keys", keys)
        got = Verbatim(f"shape {tuple(keys.shape)}")
        require(keys.shape[0] == z_1.shape[0], "keys", f"be one for each image, [{z_1.shape[0]}]", got)
    if isinstance(denoise, Stateful):
        first_state, call = denoise.init(z_1), denoise.call
    else:
        first_state, call = (), lambda z_t, logsnr_t, state: (denoise(z_t, logsnr_t), state)
    steps, batch, final = logsnr_grid.shape[0] - 1, z_1.shape[0], jnp.float32(sampler.final_logsnr)
    noise_of = lambda name, i: normal(
        jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, i), name))(keys), z_1.shape[1:]
    )

    def evaluate(z_t, logsnr_t, state):
        out, state = call(z_t, jnp.broadcast_to(logsnr_t, (batch,)), state)
        out = as_estimate(out)
        names = ", ".join(name for name, each in SAMPLERS.items() if each.reads_noise_x)
        is_read = out.noise_x is None or sampler.reads_noise_x
        rule = f"be one that reads noise_x for such guidance (of {names})"
        require(is_read, "sampler", rule, Verbatim(type(sampler).__name__))
        for x in (out.x, *jax.tree.leaves(out[1:])):
            arrays.like("the estimate of denoise", x, "z_1", z_1)
        out = jax.tree.map(lambda x: x.astype(jnp.float32), out)
        return out if out.noise_x is not None else out._replace(noise_x=out.x), state

    def body(state, inputs):
        z_t, carry, memory, broken_at = state
        i, place, before, is_first, back_to = inputs
        is_final, step = place == steps, jnp.minimum(place, steps - 1)
        logsnr_t, logsnr_s = logsnr_grid[step], logsnr_grid[step + 1]
        noise = noise_of(0, i) if sampler.is_stochastic else None
        without_noise = z_t
        z_t, logsnr_t = sampler.add_noise(z_t, logsnr_t, noise, steps)
        if sampler.has_final:
            alpha, _ = alpha_sigma(final)
            z_t = jnp.where(is_final, alpha * without_noise, z_t)
            logsnr_t = jnp.where(is_final, final, logsnr_t)
        # An estimate inside the step before may have spoiled z_t: that step is to blame.
        blame = jnp.where(_broken(z_t), before + 1, place + 1)
        estimate, memory = evaluate(z_t, logsnr_t, memory)
        broken_at = jnp.where((broken_at == 0) & _broken(estimate.x), blame, broken_at)
        again = lambda z, logsnr: evaluate(z, logsnr, memory)[0].x
        is_last = step == steps - 1
        advance = lambda: sampler.step(
            Step(z_t, *estimate, logsnr_t, logsnr_s, step, is_first, is_last, noise, again), carry
        )
        if sampler.has_final:
            z_s, carry = jax.lax.cond(is_final, lambda: (estimate.x, carry), advance)
        else:
            z_s, carry = advance()
        if resample > 1:
            returned = process.renoise(
                z_s, noise_of(1, i), logsnr_s=logsnr_s, logsnr_t=logsnr_grid[jnp.maximum(back_to, 0)]
            )
            z_s = jnp.where(back_to >= 0, returned, z_s)
        if callback is not None:
            jax.debug.callback(callback, place + 1, estimate.x, ordered=True)
        return (z_s, carry, memory, broken_at), estimate.x if trajectory else None

    z_1 = z_1.astype(jnp.float32)
    first = (z_1, sampler.init(z_1, logsnr_grid), first_state, jnp.zeros((batch,), jnp.int32))
    itinerary = _itinerary(steps, resample, jump, sampler.has_final)
    (z_0, _, _, broken_at), x_hats = jax.lax.scan(body, first, itinerary)
    return (z_0, Info(broken_at, x_hats)) if return_info else z_0


def _itinerary(steps: int, resample: int, jump: int, has_final: bool = False) -> tuple[np.ndarray, ...]:
    """For each evaluation: its number, its place on the grid (`steps`: the final one) and that of the one before,
    whether it starts anew, where to return to afterwards (-1: on)."""
    place, is_first, back_to = [], [], []
    for start in range(0, steps, jump):
        stretch = list(range(start, min(start + jump, steps)))
        for turn in range(resample):
            place += stretch
            is_first += [start == 0 or turn > 0] + [False] * (len(stretch) - 1)
            back_to += [-1] * (len(stretch) - 1) + [start if turn < resample - 1 else -1]
    if has_final:
        place, is_first, back_to = [*place, steps], [*is_first, False], [*back_to, -1]
    before = np.array([0, *place[:-1]])
    return np.arange(len(place)), np.array(place), before, np.array(is_first), np.array(back_to)


def check_grid(logsnr_grid: jax.Array) -> None:
    """Raise a ValueError unless the grid loses noise at every step; inside jit only its shape is known."""
    fix = "make it with schedules.grid"
    array = arrays.array("logsnr_grid", logsnr_grid, fix=fix)
    is_row = array.ndim == 1 and array.shape[0] > 1
    require(is_row, "logsnr_grid", "be [T+1] with steps T >= 1", Verbatim(f"shape {tuple(array.shape)}"), fix)
    levels = arrays.known(logsnr_grid)
    wrong = [] if levels is None else np.flatnonzero(~(np.diff(levels) > 0))
    if len(wrong):
        i = int(wrong[0])
        got = Verbatim(f"{levels[i]:g} then {levels[i + 1]:g} at step {i + 1}")
        raise error("logsnr_grid", "decrease in noise (logsnr must increase) at every step", got, fix)


def _broken(x: jax.Array) -> jax.Array:
    """[B]: does the image hold NaN or infinity?"""
    return ~jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))


def normal(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [B, *shape], row i from keys[i] alone: the same in any batch, on any mesh."""
    arrays.keys("keys", keys)
    is_shape = isinstance(shape, tuple | list)
    require(is_shape, "shape", "be a tuple of whole numbers", shape)
    shape = tuple(whole(f"shape[{i}]", side) for i, side in enumerate(shape))
    return jax.vmap(partial(jax.random.normal, shape=shape))(keys)
