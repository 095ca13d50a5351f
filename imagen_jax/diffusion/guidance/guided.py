"""Denoisers under guidance: away from a null condition, or from a weaker model."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import arrays
from imagen_jax.checks import Verbatim, instance, is_finite, number, plain, require, shown
from imagen_jax.diffusion.denoisers import Denoiser, Estimate, Stateful, as_estimate
from imagen_jax.diffusion.guidance.cfg import CFG
from imagen_jax.diffusion.guidance.rule import Rule
from imagen_jax.diffusion.guidance.scales import Scale, at, check_scale
from imagen_jax.diffusion.process import expand

CondDenoiseFn = Callable[[jax.Array, jax.Array, Any], Any]


def classifier_free(
    denoise: CondDenoiseFn,
    cond: Any,
    null: Any,
    guidance_scale: Scale,
    *,
    weights: Sequence[float] | None = None,
    rule: Rule | None = None,
    threshold: Callable[[jax.Array], jax.Array] | None = None,
) -> Denoiser:
    """Guidance away from `null`, a dropped caption or a negative prompt; all estimates in one larger batch.

    Args:
      denoise: (z_t [B, H, W, C], logsnr_t [B], cond) -> x_hat.
      cond, null: pytrees of equal structure, leaves [B, ...]; those of `null` may have one row for all images.
      guidance_scale: w, or a function of logsnr_t [B]. Where it is 1 only `cond` is evaluated.
      weights: `cond` is then a sequence of conditions, whose estimates are averaged with these weights, which sum
        to 1 (composition, Liu et al. 2022); a negative one steers away from its condition.
      rule: `CFG()` unless given.
      threshold: applied to both estimates before they are combined.
    """
    if weights is not None:
        require(isinstance(cond, list | tuple), "cond", "be a tuple of conditions with weights", cond)
        weights = check_weights(weights, len(cond))
    conds = (cond,) if weights is None else tuple(cond)
    weights = weights or (1.0,)
    rule = CFG() if rule is None else rule
    _check_method({"denoise": denoise}, guidance_scale, rule, threshold)
    for name, tree in (*((f"cond[{i}]", each) for i, each in enumerate(conds)), ("null", null)):
        _check_alike(name, tree, conds[0], may_be_one_row=name == "null")
    null = jax.tree.map(lambda leaf, like: jnp.broadcast_to(leaf, like.shape), null, conds[0])

    stack = lambda *trees: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)
    without, together = stack(*conds), stack(*conds, null)

    def mixed(estimates: list[Estimate]) -> Estimate:
        if len(estimates) == 1:
            return estimates[0]
        mean = lambda *xs: sum(weight * x for weight, x in zip(weights, xs, strict=True))
        return jax.tree.map(mean, *estimates)

    def evaluate(z_t: jax.Array, logsnr_t: jax.Array, stacked: Any, copies: int) -> list[Estimate]:
        out = as_estimate(denoise(_tile(z_t, copies), _tile(logsnr_t, copies), stacked))
        return _unstack(out, copies)

    def both(z_t: jax.Array, logsnr_t: jax.Array) -> tuple[Estimate, Estimate]:
        *estimates, null_estimate = evaluate(z_t, logsnr_t, together, len(conds) + 1)
        return mixed(estimates), null_estimate

    only_cond = lambda z_t, logsnr_t: mixed(evaluate(z_t, logsnr_t, without, len(conds)))
    return _guided(only_cond, both, guidance_scale, rule, threshold)


def autoguidance(
    denoise: CondDenoiseFn,
    weak: CondDenoiseFn,
    cond: Any,
    weak_cond: Any,
    guidance_scale: Scale,
    *,
    rule: Rule | None = None,
    threshold: Callable[[jax.Array], jax.Array] | None = None,
) -> Denoiser:
    """Guidance away from a weaker model under the same condition (Karras et al. 2024).

    Args:
      denoise, weak: the model, and one that is smaller or was trained for less.
      cond, weak_cond: the condition, as each of them reads it.
      guidance_scale, rule, threshold: as in `classifier_free`.
    """
    rule = CFG() if rule is None else rule
    _check_method({"denoise": denoise, "weak": weak}, guidance_scale, rule, threshold)
    only_cond = lambda z_t, logsnr_t: as_estimate(denoise(z_t, logsnr_t, cond))
    both = lambda z_t, logsnr_t: (only_cond(z_t, logsnr_t), as_estimate(weak(z_t, logsnr_t, weak_cond)))
    return _guided(only_cond, both, guidance_scale, rule, threshold)


def check_weights(weights: Sequence[float], num: int) -> tuple[float, ...]:
    """Return `weights` as floats, if they are one for each of `num` conditions, finite, and sum to 1."""
    weights = [plain(weight) for weight in arrays.sequence("weights", weights, "numbers")]
    rule = "be one for each text or condition, finite, and sum to 1 (guidance_scale is the strength of all)"
    is_right = len(weights) == num and all(map(is_finite, weights)) and math.isclose(sum(weights), 1, abs_tol=1e-5)
    fix = "divide them by their sum" if len(weights) == num and all(map(is_finite, weights)) else ""
    require(is_right, "weights", rule, Verbatim(f"{shown(tuple(weights))} for {num}"), fix)
    return tuple(map(float, weights))


def _check_method(functions: dict[str, Any], scale: Scale, rule: Any, threshold: Any) -> None:
    for name, function in functions.items():
        require(callable(function), name, "be a function of (z_t, logsnr_t, cond)", function)
    check_scale(scale)
    instance("rule", rule, Rule, "a Rule, such as CFG()")
    if isinstance(scale, int | float | np.number):
        number("guidance_scale", scale, rule.scale_interval)
    require(threshold is None or callable(threshold), "threshold", "be a function of x_hat", threshold)


def _check_alike(name: str, tree: Any, first: Any, may_be_one_row: bool) -> None:
    """Raise a ValueError unless a condition has the structure and shapes [B, ...] of the first."""
    (leaves, structure), (firsts, expected) = jax.tree.flatten(tree), jax.tree.flatten(first)
    is_right = all(arrays.has_values(leaf) and leaf.ndim > 0 for leaf in leaves)
    require(is_right, name, "be a pytree of arrays [B, ...]", tree)
    require(structure == expected, name, "have the structure of the first condition", tree)
    for leaf, like in zip(leaves, firsts, strict=True):
        is_right = leaf.shape == like.shape or (may_be_one_row and leaf.shape == (1, *like.shape[1:]))
        rule = f"have the shapes of the first condition, here {list(like.shape)}"
        require(is_right, name, rule, Verbatim(list(leaf.shape)))


def _guided(
    only_cond: Callable[[jax.Array, jax.Array], Estimate],
    both: Callable[[jax.Array, jax.Array], tuple[Estimate, Estimate]],
    scale: Scale,
    rule: Rule,
    threshold: Callable[[jax.Array], jax.Array] | None,
) -> Denoiser:
    """Return the guided denoiser; the variance is that of the conditional estimate."""
    limit = threshold or (lambda x_hat: x_hat)

    def alone(z_t: jax.Array, logsnr_t: jax.Array) -> Estimate:
        cond = only_cond(z_t, logsnr_t)
        return Estimate(limit(cond.x), log_variance=cond.log_variance)

    if isinstance(scale, int | float | np.number) and scale == 1 and rule.is_off_at_one:
        return lambda z_t, logsnr_t: _plain(alone(z_t, logsnr_t))

    def call(z_t: jax.Array, logsnr_t: jax.Array, state: Any) -> tuple[Any, Any]:
        w = at(scale, logsnr_t)

        def guided(state: Any) -> tuple[Estimate, Any]:
            cond, null = both(z_t, logsnr_t)
            out, state = rule.combine(limit(cond.x), limit(null.x), expand(w, z_t), state)
            return as_estimate(out)._replace(log_variance=cond.log_variance), state

        def unguided(state: Any) -> tuple[Estimate, Any]:
            estimate = alone(z_t, logsnr_t)
            return estimate._replace(noise_x=estimate.x if rule.gives_noise_x else None), state

        out, state = jax.lax.cond(jnp.any(w != 1), guided, unguided, state) if callable(scale) else guided(state)
        return _plain(out), state

    if not rule.has_state:
        return lambda z_t, logsnr_t: call(z_t, logsnr_t, ())[0]
    return Stateful(rule.init, call)


def _plain(estimate: Estimate) -> Any:
    """Return x_hat itself, if there is nothing else in the estimate."""
    return estimate if jax.tree.leaves(estimate[1:]) else estimate.x


def _unstack(estimate: Estimate, copies: int) -> list[Estimate]:
    parts = [jnp.split(x, copies) if x is not None else [None] * copies for x in estimate]
    return [Estimate(*part) for part in zip(*parts, strict=True)]


def _tile(x: jax.Array, copies: int) -> jax.Array:
    return jnp.concatenate([x] * copies)
