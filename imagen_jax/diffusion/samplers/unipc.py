"""UniPC (Zhao et al. 2023)."""

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion.samplers.sampler import SAMPLERS, Sampler, Step
from imagen_jax.diffusion.schedules import alpha_sigma
from imagen_jax.methods import option


@SAMPLERS.register("unipc")
@dataclasses.dataclass(frozen=True)
class UniPC(Sampler):
    """UniPC (Zhao et al. 2023, data prediction, B = expm1): predictor and corrector from one evaluation.

    x_hat at the new level first corrects the step that led there, then predicts the next one. Orders rise from
    1 at the start and fall to 1 at the end. Both parts are weighted sums of the last x_hat; the weights of all
    steps are made beforehand.
    """

    order: int = option(2, (1, 3))
    """order of the predictor, 1 to 3; the corrector has one more."""

    def init(self, z_1: jax.Array, logsnr_grid: jax.Array) -> Any:
        past = (jnp.zeros_like(z_1),) * self.order  # x_hat of the steps before, newest first
        return z_1, past, jnp.float32(0), jnp.int32(0), _weights(logsnr_grid, self.order)

    def step(self, s: Step, carry: Any) -> tuple[jax.Array, Any]:
        z_before, past, logsnr_before, order_before, weights = carry
        _, sigma_before = alpha_sigma(logsnr_before)
        _, sigma_t = alpha_sigma(s.logsnr_t)
        _, sigma_s = alpha_sigma(s.logsnr_s)
        known = (s.x_hat, *past)
        correct = weights.correct[jnp.maximum(s.index - 1, 0), order_before - 1]
        corrected = sigma_t / sigma_before * z_before + _weighted(correct, known)
        z_t = jnp.where(s.is_first, s.z_t, corrected)
        order_now = jnp.where(s.is_first, 1, jnp.minimum(order_before + 1, self.order))
        order_now = jnp.minimum(order_now, len(weights.predict) - s.index)
        predict = weights.predict[s.index, order_now - 1]
        z_s = sigma_s / sigma_t * z_t + _weighted(predict, known[: self.order])
        return z_s, (z_t, known[: self.order], s.logsnr_t, order_now, weights)


def _weighted(weights: jax.Array, x_hats: tuple[jax.Array, ...]) -> jax.Array:
    return sum(weights[k] * x_hat for k, x_hat in enumerate(x_hats))


class Weights(NamedTuple):
    """For the step from level i to level i + 1 and each order q - 1, weights of x_hat, newest first."""

    predict: jax.Array  # [T, order, order] on x_i, x_{i-1}, ...
    correct: jax.Array  # [T, order, order + 1] on x_{i+1}, x_i, x_{i-1}, ...


@partial(jax.jit, static_argnums=1)
def _weights(logsnr_grid: jax.Array, order: int) -> Weights:
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

    def rows(i: jax.Array) -> Weights:
        orders = range(1, order + 1)
        return Weights(
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
