"""One optimisation step: a pure function of (state, batch)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from imagen_jax import sharding, stage
from imagen_jax.config import StageConfig
from imagen_jax.structs import TextCond, TrainState
from imagen_jax.training import packing
from imagen_jax.training.objectives import OBJECTIVES
from imagen_jax.training.optim import learning_rate, make_optimizer
from imagen_jax.training.state import network_params

Metrics = dict[str, Any]
Objective = Callable[..., tuple[jax.Array, Metrics]]
StepFn = Callable[..., tuple[TrainState, Metrics]]


def make_train_step(
    config: StageConfig, mesh: Mesh, objective: Objective | None = None, null: TextCond | None = None
) -> StepFn:
    """Return step(state, batch, teacher=None) -> (state, metrics), to be jitted.

    All randomness is derived from (seed, state.step), so that a restored run repeats it exactly.

    Args:
      config: of the stage. Batches have config.optim.batch_size rows; see `stage.image_losses`.
      mesh: as from `sharding.make_mesh`; state and batch lie on it.
      objective: what is minimised, see `objectives`; None: the one that config.optim.objective names.
      null: [1] the null caption, if it is not zeros; a constant of the step. See `stage.image_losses`.

    Returns:
      A function. `state.params` are differentiated and updated, `state.frozen` are not, and neither is the
      `stage.Stage` that an objective which learns from a teacher is given as well. A step whose loss or gradient
      is not finite changes nothing but the step's number. Metrics are the scalars loss, grad_norm, learning_rate,
      ema_distance (of the averaged parameters from the others, as a share of their norm) and skipped (1 if nothing
      changed, else 0), and under "sums" the objective's metrics.

    Raises:
      ValueError: no such objective or optimiser is registered.
    """
    objective = objective or OBJECTIVES[config.optim.objective](config)
    optimizer = make_optimizer(config.optim)
    root = stage.named_key(jax.random.key(config.seed), "train")

    def step(
        state: TrainState, batch: stage.Batch, teacher: stage.Stage | None = None
    ) -> tuple[TrainState, Metrics]:
        draws = stage.draw(config, jax.random.fold_in(root, state.step), config.optim.batch_size)
        given = () if teacher is None else (teacher,)
        more = {} if null is None else {"null": null}
        loss_of = lambda params, batch, draws: objective(
            network_params(config, state, params), batch | more, draws, *given
        )
        with sharding.use_mesh(mesh):
            params = packing.unpack(state.params)
            (loss, sums), grads = _loss_and_grads(loss_of, config.optim.accumulation, mesh, params, batch, draws)
        with jax.named_scope("optimiser"):  # its name in traces
            grads = packing.pack(grads, state.params)
            grad_norm = optax.global_norm(grads)
            is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            is_finite &= jnp.isfinite(optax.global_norm(updates))  # an optimiser's own numbers can overflow
            params = optax.apply_updates(state.params, updates)
            # The decay of the average warms up: the first parameters are soon forgotten.
            decay = jnp.minimum(config.optim.ema_decay, (1 + state.step) / (10 + state.step))
            ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
            new = state.replace(params=params, ema_params=ema_params, opt_state=opt_state)
            new = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, state)
            distance = optax.global_norm(jax.tree.map(jnp.subtract, new.params, new.ema_params))
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate(config.optim)(state.step),
            "ema_distance": distance / optax.global_norm(new.params),
            "skipped": 1 - is_finite.astype(jnp.int32),
            "sums": sums,
        }
        return new.replace(step=state.step + 1, frozen=state.frozen), metrics

    return step


def _loss_and_grads(
    objective: Objective, parts: int, mesh: Mesh, params: Any, batch: stage.Batch, draws: stage.Draws
) -> tuple[tuple[jax.Array, Metrics], Any]:
    """Return ((loss, metrics), gradient) of the batch, computed in `parts` parts to save memory."""
    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    if parts == 1:
        return value_and_grad(params, batch, sharding.constrain_batch(draws, mesh))

    # Part i takes every parts-th row, so that each device keeps its own rows.
    split = jax.tree.map(
        lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), (batch, draws)
    )
    split = sharding.constrain_batch(split, mesh, axis=1)

    def add(total, part):
        return jax.tree.map(jnp.add, total, value_and_grad(params, *part)), None

    shapes = jax.eval_shape(value_and_grad, params, *jax.tree.map(lambda a: a[0], split))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    ((loss_sum, sums), grads), _ = jax.lax.scan(add, zero, split)
    return (loss_sum / parts, sums), jax.tree.map(lambda leaf: leaf / parts, grads)
