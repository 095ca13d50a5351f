"""Samplers: one scan over a grid of log-SNRs; each sampler is a small step function.

A sampler sees the model only as `denoise(z_t [B, H, W, C], logsnr_t [B]) -> x_hat`. Guidance and
thresholding are already inside it, so every update is written in x_hat, from which eps follows.
The state is float32. The last step of a stochastic sampler adds no noise. h below is a step of
log(alpha / sigma), half the step of logsnr.
"""

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import arrays
from imagen_jax.checks import Verbatim, boolean, choice, error, instance, number, require, whole
from imagen_jax.diffusion import process
from imagen_jax.diffusion.guidance import DenoiseFn, Denoiser, Estimate, Stateful, check_denoiser
from imagen_jax.diffusion.schedules import alpha_sigma

LONGEST_HEUN = 4.0  # in h: S falls 55-fold


class Step(NamedTuple):
    """What a step knows: z_t and x_hat [B, ...], scalars logsnr_t and logsnr_s (s < t), its place."""

    z_t: jax.Array
    x_hat: jax.Array
    noise_x: jax.Array  # x_hat, unless the denoiser says from which x to take eps_hat
    logsnr_t: jax.Array
    logsnr_s: jax.Array
    index: jax.Array  # 0, 1, ..., T - 1
    is_first: jax.Array  # nothing before it to extrapolate from
    is_last: jax.Array
    noise: jax.Array | None  # standard normal like z_t, if the sampler is stochastic
    denoise: DenoiseFn  # for samplers that evaluate the model again


class Sampler(NamedTuple):
    """`step(step, carry) -> (z_s, carry)`; `init(z_1, logsnr_grid)` is the first carry.

    `churn(z_t, logsnr_t, noise, T) -> (z_t, logsnr_t)` moves to a noisier level before the model is evaluated.
    """

    step: Callable[[Step, Any], tuple[jax.Array, Any]]
    init: Callable[[jax.Array, jax.Array], Any] = lambda z_1, logsnr_grid: ()
    is_stochastic: bool = False
    churn: Callable[..., tuple[jax.Array, jax.Array]] | None = None


class Info(NamedTuple):
    """What `sample` knows besides the images.

    Attributes:
      broken_at: [B] the step (from 1) of the first estimate with NaN or infinity, 0 if there was none.
      x_hats: [T, B, H, W, C] the estimates of all steps, if asked for.
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

    Args:
      denoise: (z_t [B, H, W, C], logsnr_t [B]) -> x_hat, float; or a `guidance.Stateful`.
      z_1: [B, H, W, C] start, standard normal if the grid starts at pure noise.
      logsnr_grid: [T+1], noisiest first, increasing.
      sampler: a name in `SAMPLERS` or a `Sampler`, such as `ddpm(gamma=0)`.
      keys: [B] one key per image; needed by stochastic samplers and by `resample`.
      resample: times that each group of `jump` steps is run, with noise added in between to return
        to its start (RePaint, Lugmayr et al. 2022); for inpainting.
      return_info: also return `Info`.
      trajectory: keep the estimates of all steps in `Info`.
      callback: called on the host with (step from 1, x_hat) after every step, in order.

    Returns:
      z at the last level, [B, H, W, C] float32: x itself if the grid ends at a clean level. With return_info
      (z, Info).
    """
    sampler = make(sampler) if isinstance(sampler, str) else sampler
    instance("sampler", sampler, Sampler, f"a Sampler or one of {', '.join(SAMPLERS)}")
    is_whole = callable(sampler.step) and callable(sampler.init)
    require(is_whole, "sampler", "have functions step and init", sampler)
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
    steps, batch = logsnr_grid.shape[0] - 1, z_1.shape[0]
    noise_of = lambda name, i: normal(
        jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, i), name))(keys), z_1.shape[1:]
    )

    def evaluate(z_t, logsnr_t, state):
        out, state = call(z_t, jnp.broadcast_to(logsnr_t, (batch,)), state)
        out = out if isinstance(out, Estimate) else Estimate(out, out)
        for x in out:
            arrays.like("the estimate of denoise", x, "z_1", z_1)
        return jax.tree.map(lambda x: x.astype(jnp.float32), out), state

    def body(state, inputs):
        z_t, carry, memory, broken_at = state
        i, place, before, is_first, back_to = inputs
        logsnr_t, logsnr_s = logsnr_grid[place], logsnr_grid[place + 1]
        noise = noise_of(0, i) if sampler.is_stochastic else None
        if sampler.churn is not None:
            z_t, logsnr_t = sampler.churn(z_t, logsnr_t, noise, steps)
        # An estimate inside the step before may have spoiled z_t: that step is to blame.
        blame = jnp.where(_broken(z_t), before + 1, place + 1)
        estimate, memory = evaluate(z_t, logsnr_t, memory)
        broken_at = jnp.where((broken_at == 0) & _broken(estimate.x), blame, broken_at)
        again = lambda z, logsnr: evaluate(z, logsnr, memory)[0].x
        is_last = place == steps - 1
        z_s, carry = sampler.step(
            Step(z_t, *estimate, logsnr_t, logsnr_s, place, is_first, is_last, noise, again), carry
        )
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
    (z_0, _, _, broken_at), x_hats = jax.lax.scan(body, first, _itinerary(steps, resample, jump))
    return (z_0, Info(broken_at, x_hats)) if return_info else z_0


def _itinerary(steps: int, resample: int, jump: int) -> tuple[np.ndarray, ...]:
    """For each evaluation: its number, its place on the grid and that of the one before, whether it starts anew, where
    to return to afterwards (-1: on)."""
    place, is_first, back_to = [], [], []
    for start in range(0, steps, jump):
        stretch = list(range(start, min(start + jump, steps)))
        for turn in range(resample):
            place += stretch
            is_first += [start == 0 or turn > 0] + [False] * (len(stretch) - 1)
            back_to += [-1] * (len(stretch) - 1) + [start if turn < resample - 1 else -1]
    before = np.array([0, *place[:-1]])
    return np.arange(len(place)), np.array(place), before, np.array(is_first), np.array(back_to)


def check_grid(logsnr_grid: jax.Array) -> None:
    """Raises ValueError unless the grid loses noise at every step; inside jit only its shape is known."""
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


def make(name: str, **options: float) -> Sampler:
    """The sampler called `name`, with options of its own such as gamma for ddpm."""
    make_it = SAMPLERS[choice("sampler", name, SAMPLERS)]
    known = list(inspect.signature(make_it).parameters)
    unknown = sorted(set(options) - set(known))
    require(not unknown, f"options of {name}", f"be among {', '.join(known) or 'none'}", Verbatim(", ".join(unknown)))
    return make_it(**options)


def ddim(eta: float = 0.0) -> Sampler:
    """z_s = alpha_s x_hat + sigma_s sqrt(1 - eta^2 (1-r)) eps_hat + eta sqrt(1-r) sigma_s noise; first order.

    (Song et al. 2020, equations 12 and 16.) eta 0 is deterministic, 1 is ddpm with gamma 0.
    """

    number("eta", eta, "[0, 1]")

    def step(s: Step, carry):
        alpha_t, sigma_t = alpha_sigma(s.logsnr_t)
        alpha_s, sigma_s = alpha_sigma(s.logsnr_s)
        eps_hat = (s.z_t - alpha_t * s.noise_x) / sigma_t
        if not eta:
            return alpha_s * s.x_hat + sigma_s * eps_hat, carry
        share = jnp.where(s.is_last, 0.0, -(eta**2) * jnp.expm1(s.logsnr_t - s.logsnr_s))
        z_s = alpha_s * s.x_hat + sigma_s * (jnp.sqrt(1 - share) * eps_hat + jnp.sqrt(share) * s.noise)
        return z_s, carry

    return Sampler(step, is_stochastic=eta > 0)


def ddpm(gamma: float = 0.2) -> Sampler:
    """Ancestral sampling (paper appendix A): a draw of q(z_s | z_t, x_hat) with interpolated variance.

    log variance = (1 - gamma) log((1-r) sigma_s^2) + gamma log((1-r) sigma_t^2).
    """
    number("gamma", gamma, "[0, 1]")

    def step(s: Step, carry):
        mean, lower = process.posterior(z_t=s.z_t, x=s.x_hat, logsnr_t=s.logsnr_t, logsnr_s=s.logsnr_s)
        _, sigma_t = alpha_sigma(s.logsnr_t)
        _, sigma_s = alpha_sigma(s.logsnr_s)
        std = jnp.sqrt(lower) * (sigma_t / sigma_s) ** gamma
        return mean + jnp.where(s.is_last, 0.0, std) * s.noise, carry

    return Sampler(step, is_stochastic=True)


def dpmpp_2m(eta: float = 0.0) -> Sampler:
    """DPM-Solver++(2M) (Lu et al. 2022), and its SDE for eta > 0: second order, from the last two x_hat.

    With H = (1 + eta) h and r = h_before / h,
    D = (1 + 1/(2r)) x_hat - 1/(2r) x_hat_before,
    z_s = (sigma_s / sigma_t) e^(-eta h) z_t - alpha_s expm1(-H) D + sigma_s sqrt(1 - e^(-2 eta h)) noise.
    The first step has no past, and the last goes to no noise where h is unbounded: both use D = x_hat.
    """
    number("eta", eta, "[0, 1]")

    def init(z_1, logsnr_grid):
        return jnp.zeros_like(z_1), jnp.ones((), jnp.float32)  # x_hat and h of the step before

    def step(s: Step, carry):
        x_before, h_before = carry
        _, sigma_t = alpha_sigma(s.logsnr_t)
        alpha_s, sigma_s = alpha_sigma(s.logsnr_s)
        h = (s.logsnr_s - s.logsnr_t) / 2
        extrapolation = jnp.where(s.is_first | s.is_last, 0.0, h / (2 * h_before))
        d = s.x_hat + extrapolation * (s.x_hat - x_before)
        if not eta:
            return sigma_s / sigma_t * s.z_t - alpha_s * jnp.expm1(-h) * d, (s.x_hat, h)
        shrink = jnp.where(s.is_last, 0.0, eta * h)
        z_s = sigma_s / sigma_t * jnp.exp(-shrink) * s.z_t - alpha_s * jnp.expm1(-h - shrink) * d
        return z_s + sigma_s * jnp.sqrt(-jnp.expm1(-2 * shrink)) * s.noise, (s.x_hat, h)

    return Sampler(step, init, is_stochastic=eta > 0)


def heun(
    churn: float = 0.0, churn_min: float = 0.05, churn_max: float = 50.0, churn_noise: float = 1.003
) -> Sampler:
    """EDM's sampler (Karras et al. 2022, algorithm 2): the trapezoidal rule in S = sigma / alpha.

    In these variables the correction of the Euler (ddim) step is (alpha_s / 2) expm1(h) (x_hat_s - x_hat_t).
    The last step, to no noise, is an Euler step; so are those longer than h = LONGEST_HEUN, whose
    trapezoid would amplify the change of x_hat. Two evaluations a step, one in Euler steps. Made for "rho" grids.

    Args:
      churn: S_churn, noise added over the whole run; 0 is deterministic. A step raises S by at most sqrt(2).
      churn_min, churn_max: S between which it is added.
      churn_noise: standard deviation of the added noise.
    """

    churn = number("churn", churn, "[0, inf)")
    churn_min, churn_max = number("churn_min", churn_min), number("churn_max", churn_max)
    is_right = 0 < churn_min < churn_max
    require(is_right, "churn_min", "be positive and below churn_max", Verbatim(f"{churn_min} and {churn_max}"))
    churn_noise = number("churn_noise", churn_noise, "(0, inf)")

    def add_noise(z_t, logsnr_t, noise, steps):
        level = jnp.exp(-jnp.maximum(logsnr_t, -100) / 2)  # S
        inside = (churn_min <= level) & (level <= churn_max)
        rise = jnp.where(inside, min(churn / steps, 2**0.5 - 1), 0.0)  # S grows by 1 + rise
        logsnr_hat = logsnr_t - 2 * jnp.log1p(rise)
        alpha_t, sigma_t = alpha_sigma(logsnr_t)
        alpha_hat, _ = alpha_sigma(logsnr_hat)
        extra = sigma_t * jnp.sqrt(rise * (2 + rise)) * churn_noise * noise
        safe_alpha = jnp.where(alpha_t > 0, alpha_t, 1.0)
        return jnp.where(inside, alpha_hat / safe_alpha * (z_t + extra), z_t), logsnr_hat

    def step(s: Step, carry):
        alpha_t, sigma_t = alpha_sigma(s.logsnr_t)
        alpha_s, sigma_s = alpha_sigma(s.logsnr_s)
        euler = alpha_s * s.x_hat + sigma_s / sigma_t * (s.z_t - alpha_t * s.x_hat)
        h = (s.logsnr_s - s.logsnr_t) / 2

        def corrected():
            change = s.denoise(euler, s.logsnr_s) - s.x_hat
            return euler + alpha_s / 2 * jnp.expm1(h) * change

        return jax.lax.cond(s.is_last | (h > LONGEST_HEUN), lambda: euler, corrected), carry

    return Sampler(step, is_stochastic=churn > 0, churn=add_noise if churn > 0 else None)


def unipc(order: int = 2) -> Sampler:
    """UniPC (Zhao et al. 2023, data prediction, B = expm1): predictor and corrector from one evaluation.

    x_hat at the new level first corrects the step that led there, then predicts the next one. Orders rise from
    1 at the start and fall to 1 at the end. Both parts are weighted sums of the last x_hat; the weights of all
    steps are made beforehand.

    Args:
      order: 1, 2 or 3 of the predictor; the corrector has one more.
    """
    whole("order", order, 1, 3)

    def init(z_1, logsnr_grid):
        past = (jnp.zeros_like(z_1),) * order  # x_hat of the steps before, newest first
        return z_1, past, jnp.float32(0), jnp.int32(0), _unipc_weights(logsnr_grid, order)

    def step(s: Step, carry):
        z_before, past, logsnr_before, order_before, weights = carry
        _, sigma_before = alpha_sigma(logsnr_before)
        _, sigma_t = alpha_sigma(s.logsnr_t)
        _, sigma_s = alpha_sigma(s.logsnr_s)
        known = (s.x_hat, *past)
        correct = weights.correct[jnp.maximum(s.index - 1, 0), order_before - 1]
        corrected = sigma_t / sigma_before * z_before + _weighted(correct, known)
        z_t = jnp.where(s.is_first, s.z_t, corrected)
        order_now = jnp.where(s.is_first, 1, jnp.minimum(order_before + 1, order))
        order_now = jnp.minimum(order_now, len(weights.predict) - s.index)
        predict = weights.predict[s.index, order_now - 1]
        z_s = sigma_s / sigma_t * z_t + _weighted(predict, known[:order])
        return z_s, (z_t, known[:order], s.logsnr_t, order_now, weights)

    return Sampler(step, init)


def _weighted(weights: jax.Array, x_hats: tuple[jax.Array, ...]) -> jax.Array:
    return sum(weights[k] * x_hat for k, x_hat in enumerate(x_hats))


class _Weights(NamedTuple):
    """For the step from level i to level i + 1 and each order q - 1, weights of x_hat, newest first."""

    predict: jax.Array  # [T, order, order] on x_i, x_{i-1}, ...
    correct: jax.Array  # [T, order, order + 1] on x_{i+1}, x_i, x_{i-1}, ...


@partial(jax.jit, static_argnums=1)
def _unipc_weights(logsnr_grid: jax.Array, order: int) -> _Weights:
    # Beyond these bounds the differences that they scale vanish.
    half = jnp.clip(logsnr_grid.astype(jnp.float32), -30, 30) / 2
    alpha, _ = alpha_sigma(logsnr_grid)

    def row(i: jax.Array, q: int, ahead: list[float]) -> jax.Array:
        """[len(ahead) + order]: x_{i+1} if it is `ahead`, x_i, x_{i-1}, ..., x_{i-order+1}."""
        h = half[i + 1] - half[i]
        # Where, in units of h from level i, x_hat is known beside x_i; rows without that past are never used.
        places = [(half[i - k] - half[i]) / h for k in range(1, q)]
        places = ahead + [jnp.where(i >= k, place, -k) for k, place in enumerate(places, 1)]
        slopes = jnp.zeros(len(ahead) + order - 1)
        if places:
            where = jnp.stack([jnp.asarray(place, jnp.float32) for place in places])
            slopes = slopes.at[: len(places)].set(_slope_weights(h, where) / where)
        on_others, on_x_i = slopes, 1 - jnp.sum(slopes)
        weights = jnp.concatenate([on_others[: len(ahead)], on_x_i[None], on_others[len(ahead) :]])
        return alpha[i + 1] * -jnp.expm1(-h) * weights

    def rows(i: jax.Array) -> _Weights:
        orders = range(1, order + 1)
        return _Weights(
            jnp.stack([row(i, q, []) for q in orders]), jnp.stack([row(i, q, [1.0]) for q in orders])
        )

    return jax.vmap(rows)(jnp.arange(logsnr_grid.shape[0] - 1))


def _slope_weights(h: jax.Array, places: jax.Array) -> jax.Array:
    """rho [n] with sum_j rho_j places_j^(k-1) = b_k for k = 1 to n; the paper's 1/2 for n = 1.

    b_k is the mean of u^k over u in [0, 1] under the weight e^(-(1-u) h) of an exact exponential step.
    """
    num = len(places)
    if num == 1:
        return jnp.full((1,), 0.5)
    u, weight = np.polynomial.legendre.leggauss(8)
    u, weight = jnp.asarray(u / 2 + 0.5, jnp.float32), jnp.asarray(weight / 2, jnp.float32)
    kernel = weight * jnp.exp(-(1 - u) * h)
    powers = jnp.arange(1, num + 1, dtype=jnp.float32)
    quadrature = jnp.sum(kernel[None, :] * u[None, :] ** powers[:, None], axis=1) / jnp.sum(kernel)
    recursion = [1.0]  # exact, but cancels for small h
    for k in range(1, num + 1):
        recursion.append(1 / -jnp.expm1(-h) - k / h * recursion[-1])
    b = jnp.where(h < 2, quadrature, jnp.stack(recursion[1:]))
    # The rows of the inverse Vandermonde matrix are the Lagrange polynomials.
    rho = []
    for j in range(num):
        others = [places[m] for m in range(num) if m != j]
        top = b[1] - b[0] * others[0]
        if num == 3:
            top = b[2] - b[1] * (others[0] + others[1]) + b[0] * others[0] * others[1]
        rho.append(top / math.prod(places[j] - other for other in others))
    return jnp.stack(rho)


SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": partial(dpmpp_2m, eta=1.0),
    "heun": heun,
    "unipc": unipc,
}
