"""Guidance turns a conditional denoiser into a denoiser: (z_t, logsnr_t) -> x_hat.

Every method pairs x_cond, the estimate that follows the prompt, with x_null, one that does so less, and
combines the two by a `Rule` and a scale: 1 is off, and there only x_cond is computed. The combinations are
of x_hat; since their weights sum to 1, guiding x is the same as guiding eps or v.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import arrays
from imagen_jax.checks import Said, is_finite, number, plain, require, shown, whole
from imagen_jax.diffusion.denoisers import DenoiseFn, Denoiser, Estimate, Stateful, then
from imagen_jax.diffusion.process import expand

CondDenoiseFn = Callable[[jax.Array, jax.Array, Any], jax.Array]
Scale = float | jax.Array | Callable[[jax.Array], jax.Array]  # a function takes logsnr_t [B]


class Rule(NamedTuple):
    """How two estimates become one: `combine(x_cond, x_null, scale [B, 1, ...], state)` -> (x_hat, state)."""

    combine: Callable[[jax.Array, jax.Array, jax.Array, Any], tuple[Any, Any]]
    init: Callable[[jax.Array], Any] | None = None
    is_off_at_one: bool = True  # a scale of 1 gives x_cond alone


# --- scales ---------------------------------------------------------------------------------------


def interval(guidance_scale: Scale, low: float, high: float) -> Scale:
    """`guidance_scale` where low <= logsnr_t <= high, and 1 elsewhere (Kynkäänniemi et al. 2024)."""
    _check_scale(guidance_scale)
    for name, bound in {"low": low, "high": high}.items():
        arrays.real(name, bound)

    def scale(logsnr_t: jax.Array) -> jax.Array:
        inside = (low <= logsnr_t) & (logsnr_t <= high)
        return jnp.where(inside, _at(guidance_scale, logsnr_t), 1.0)

    return scale


def oscillating(guidance_scale: float, low: float, start: int, logsnr_grid: jax.Array) -> Scale:
    """`guidance_scale` for the first `start` steps of the grid, then `low` and it by turns.

    (Ho et al. 2022, Imagen Video, section 3.4.) The step is read off logsnr_t: the last level of `logsnr_grid` [T+1]
    that is not cleaner.
    """
    _check_scale(guidance_scale)
    arrays.real("low", low)
    whole("start", start)
    arrays.array("logsnr_grid", logsnr_grid, ndim=1)
    tolerance = 1e-4  # a step's own logsnr may have been rounded on the way

    def scale(logsnr_t: jax.Array) -> jax.Array:
        step = jnp.sum(logsnr_grid[None, :] <= logsnr_t[:, None] + tolerance, axis=1) - 1
        is_low = (step >= start) & ((step - start) % 2 == 0)
        return jnp.where(is_low, low, guidance_scale)

    return scale


def _check_scale(scale: Scale) -> None:
    if callable(scale):
        return
    arrays.real("guidance_scale", scale)
    values = arrays.known(scale) if arrays.is_array(scale) else float(scale)
    require(values is None or bool(np.isfinite(values).all()), "guidance_scale", "be finite", scale)


def _at(scale: Scale, logsnr_t: jax.Array) -> jax.Array:
    return scale(logsnr_t) if callable(scale) else jnp.broadcast_to(jnp.float32(scale), logsnr_t.shape)


# --- rules ----------------------------------------------------------------------------------------


def linear() -> Rule:
    """x_null + w (x_cond - x_null): classifier-free guidance (paper equation 2)."""
    return Rule(lambda x_cond, x_null, w, state: (x_null + w * (x_cond - x_null), state))


def projected(parallel: float = 0.0, norm: float | None = None, momentum: float = 0.0) -> Rule:
    """Adaptive projected guidance (Sadat et al. 2024): x_cond + (w - 1) (d_orthogonal + parallel d_parallel).

    d = x_cond - x_null is split along x_cond and across it; what lies along x_cond mostly adds saturation.

    Args:
      parallel: share of the parallel part that is kept; 1 is linear guidance.
      norm: the largest root-mean-square of d over an image's values, which means the same at every size.
      momentum: weight of the sum of earlier d; negative steers away from them, -0.5 for example.
    """

    parallel, momentum = number("parallel", parallel), number("momentum", momentum)
    if norm is not None:
        norm = number("norm", norm, "(0, inf)")

    def combine(x_cond: jax.Array, x_null: jax.Array, w: jax.Array, before: Any) -> tuple[jax.Array, Any]:
        d = x_cond - x_null
        if momentum:
            d = before = d + momentum * before
        if norm is not None:
            d = d * jnp.minimum(1.0, norm / jnp.maximum(jnp.sqrt(_mean(d * d)), 1e-12))
        along = _mean(d * x_cond) / jnp.maximum(_mean(x_cond * x_cond), 1e-12) * x_cond
        return x_cond + (w - 1) * (d - along + parallel * along), before

    return Rule(combine, (lambda z_1: jnp.zeros(z_1.shape, jnp.float32)) if momentum else None)


def plus_plus() -> Rule:
    """CFG++ (Chung et al. 2024): x_null + w (x_cond - x_null) with w in [0, 1], noised again along x_null's eps.

    For ddim, the sampler that reads `Estimate.noise_x`. A constant w of 1 is no exception: both are evaluated.
    """

    def combine(x_cond: jax.Array, x_null: jax.Array, w: jax.Array, state: Any) -> tuple[Estimate, Any]:
        return Estimate(x_null + w * (x_cond - x_null), x_null), state

    return Rule(combine, is_off_at_one=False)


def rescaled(rule: Rule, share: float = 0.7) -> Rule:
    """`rule`, with `share` of its result brought to x_cond's contrast in each image (Lin et al. 2023, equation 15)."""
    _check_rule(rule)
    number("share", share, "[0, 1]")

    def combine(x_cond: jax.Array, x_null: jax.Array, w: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        x_hat, state = rule.combine(x_cond, x_null, w, state)
        is_alone = not isinstance(x_hat, Estimate)
        require(is_alone, "rescaled", "be of a rule that returns x_hat alone", Verbatim("plus_plus()"))
        factor = _std(x_cond) / jnp.maximum(_std(x_hat), 1e-12)
        return x_hat * (share * factor + 1 - share), state

    return Rule(combine, rule.init)


def _mean(x: jax.Array) -> jax.Array:
    """Over each image: [B, H, W, C] -> [B, 1, 1, 1]."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def _std(x: jax.Array) -> jax.Array:
    return jnp.sqrt(_mean((x - _mean(x)) ** 2))


# --- methods --------------------------------------------------------------------------------------


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
      cond, null: pytrees of equal structure, leaves [B, ...].
      guidance_scale: w, or a function of logsnr_t [B]. Where it is 1 only `cond` is evaluated.
      weights: `cond` is then a sequence of conditions, whose estimates are averaged with these weights, which sum
        to 1 (composition, Liu et al. 2022); a negative one steers away from its condition.
      rule: `linear()` unless given.
      threshold: applied to both estimates before they are combined.
    """
    if weights is not None:
        require(isinstance(cond, list | tuple), "cond", "be a tuple of conditions with weights", cond)
        weights = check_weights(weights, len(cond))
    conds = (cond,) if weights is None else tuple(cond)
    weights = weights or (1.0,)
    _check_method({"denoise": denoise}, guidance_scale, rule, threshold)
    for name, tree in (*((f"cond[{i}]", each) for i, each in enumerate(conds)), ("null", null)):
        is_right = _shapes(tree, name) == _shapes(conds[0], name)
        require(is_right, name, "have the structure and shapes of the first condition", tree)

    stack = lambda *trees: jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *trees)
    without, together = stack(*conds), stack(*conds, null)

    def mixed(x_hats: list[jax.Array]) -> jax.Array:
        if len(x_hats) == 1:
            return x_hats[0]
        return sum(weight * x_hat for weight, x_hat in zip(weights, x_hats, strict=True))

    def evaluate(z_t: jax.Array, logsnr_t: jax.Array, stacked: Any, copies: int) -> list[jax.Array]:
        return jnp.split(denoise(_tile(z_t, copies), _tile(logsnr_t, copies), stacked), copies)

    def both(z_t: jax.Array, logsnr_t: jax.Array) -> tuple[jax.Array, jax.Array]:
        *x_hats, x_null = evaluate(z_t, logsnr_t, together, len(conds) + 1)
        return mixed(x_hats), x_null

    only_cond = lambda z_t, logsnr_t: mixed(evaluate(z_t, logsnr_t, without, len(conds)))
    return _guided(only_cond, both, guidance_scale, rule or linear(), threshold)


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
    _check_method({"denoise": denoise, "weak": weak}, guidance_scale, rule, threshold)
    only_cond = lambda z_t, logsnr_t: denoise(z_t, logsnr_t, cond)
    both = lambda z_t, logsnr_t: (only_cond(z_t, logsnr_t), weak(z_t, logsnr_t, weak_cond))
    return _guided(only_cond, both, guidance_scale, rule or linear(), threshold)


def check_weights(weights: Sequence[float], num: int) -> tuple[float, ...]:
    """Return `weights` as floats, if they are one for each of `num` conditions, finite, and sum to 1."""
    weights = [plain(weight) for weight in arrays.sequence("weights", weights, "numbers")]
    rule = "be one for each text or condition, finite, and sum to 1 (guidance_scale is the strength of all)"
    is_right = len(weights) == num and all(map(is_finite, weights)) and math.isclose(sum(weights), 1, abs_tol=1e-5)
    require(is_right, "weights", rule, Verbatim(f"{shown(tuple(weights))} for {num}"), "divide them by their sum")
    return tuple(map(float, weights))


def _check_method(functions: dict[str, Any], scale: Scale, rule: Any, threshold: Any) -> None:
    for name, function in functions.items():
        require(callable(function), name, "be a function of (z_t, logsnr_t, cond)", function)
    _check_scale(scale)
    if rule is not None:
        _check_rule(rule)
    require(threshold is None or callable(threshold), "threshold", "be a function of x_hat", threshold)


def _shapes(tree: Any, name: str) -> tuple[Any, list[tuple[int, ...]]]:
    """The structure of a condition, and the shapes of its leaves [B, ...] without B."""
    leaves, structure = jax.tree.flatten(tree)
    is_right = all(arrays.has_values(leaf) and leaf.ndim > 0 for leaf in leaves)
    require(is_right, name, "be a pytree of arrays [B, ...]", tree)
    return structure, [tuple(leaf.shape[1:]) for leaf in leaves]


def _check_rule(rule: Any) -> None:
    is_rule = isinstance(rule, Rule) and callable(rule.combine)
    require(is_rule, "rule", "be a Rule, such as linear()", rule)


def _guided(
    only_cond: DenoiseFn,
    both: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    scale: Scale,
    rule: Rule,
    threshold: Callable[[jax.Array], jax.Array] | None,
) -> Denoiser:
    if isinstance(scale, int | float | np.number) and scale == 1 and rule.is_off_at_one:
        return only_cond if threshold is None else then(only_cond, threshold)
    limit = threshold or (lambda x_hat: x_hat)

    def call(z_t: jax.Array, logsnr_t: jax.Array, state: Any) -> tuple[Any, Any]:
        w = _at(scale, logsnr_t).astype(jnp.float32)

        def guided(state: Any) -> tuple[Any, Any]:
            x_cond, x_null = both(z_t, logsnr_t)
            return rule.combine(limit(x_cond), limit(x_null), expand(w, z_t), state)

        def unguided(state: Any) -> tuple[Any, Any]:
            x_cond = limit(only_cond(z_t, logsnr_t))
            like = jax.eval_shape(guided, state)[0]
            return (Estimate(x_cond, x_cond) if isinstance(like, Estimate) else x_cond), state

        if not callable(scale):
            return guided(state)
        return jax.lax.cond(jnp.any(w != 1), guided, unguided, state)

    if rule.init is None:
        return lambda z_t, logsnr_t: call(z_t, logsnr_t, ())[0]
    return Stateful(rule.init, call)


def _tile(x: jax.Array, copies: int) -> jax.Array:
    return jnp.concatenate([x] * copies)
