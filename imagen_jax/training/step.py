"""One optimisation step: a pure function of (state, batch)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from imagen_jax import sharding, stage
from imagen_jax.checks import require
from imagen_jax.config import StageConfig
from imagen_jax.structs import Auxiliary, TextCond, TrainState
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
      A function. `state.params` and the auxiliary network are differentiated and updated, each with its optimiser's
      state; `state.frozen` are not, and neither is the `stage.Stage` that an objective which learns from a teacher is
      given as well. A step whose loss or gradient is not finite changes nothing but the step's number. Metrics are the
      scalars loss, grad_norm (of `params`), learning_rate, ema_distance (of the averaged parameters from the others, as
      a share of their norm) and skipped (1 if nothing changed, else 0), and under "sums" the objective's metrics.

    Raises:
      ValueError: no such objective or optimiser is registered.
    """
    name = config.optim.objective
    needs_teacher = objective is None and getattr(OBJECTIVES[name], "needs_teacher", False)
    objective = objective or OBJECTIVES[name](config)
    optimizer = make_optimizer(config.optim)
    root = stage.named_key(jax.random.key(config.seed), "train")

    def step(
        state: TrainState, batch: stage.Batch, teacher: stage.Stage | None = None
    ) -> tuple[TrainState, Metrics]:
        require(teacher is not None or not needs_teacher, "teacher", f"be a Stage with objective {name!r}", teacher)
        draws = stage.draw(config, jax.random.fold_in(root, state.step), config.optim.batch_size)
        given = () if teacher is None else (teacher,)
        more = {} if null is None else {"null": null}
        trained = (state,) if state.auxiliary is None else (state, state.auxiliary)

        def loss_of(params: tuple[Any, ...], batch: stage.Batch, draws: stage.Draws) -> tuple[jax.Array, Metrics]:
            own, *auxiliary = params
            return objective(network_params(config, state, own), batch | more, draws, *given, *auxiliary)

        with sharding.use_mesh(mesh):
            params = tuple(packing.unpack(each.params) for each in trained)
            (loss, sums), grads = _loss_and_grads(loss_of, config.optim.accumulation, mesh, params, batch, draws)
        with jax.named_scope("optimiser"):  # its name in traces
            (new, *auxiliary), norms = zip(*map(partial(_updated, optimizer), trained, grads), strict=True)
            is_finite = jnp.isfinite(loss) & jnp.isfinite(jnp.asarray(norms)).all()
            # The decay of the average warms up: the first parameters are soon forgotten.
            decay = jnp.minimum(config.optim.ema_decay, (1 + state.step) / (10 + state.step))
            ema_params = optax.incremental_update(new.params, state.ema_params, 1 - decay)
            new = new.replace(ema_params=ema_params, auxiliary=auxiliary[0] if auxiliary else None)
            new = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, state)
            distance = optax.global_norm(jax.tree.map(jnp.subtract, new.params, new.ema_params))
        metrics = {
            "loss": loss,
            "grad_norm": norms[0][0],
            "learning_rate": learning_rate(config.optim)(state.step),
            "ema_distance": distance / optax.global_norm(new.params),
            "skipped": 1 - is_finite.astype(jnp.int32),
            "sums": sums,
        }
        return new.replace(step=state.step + 1, frozen=state.frozen), metrics

    return step


def _updated(
    optimizer: optax.GradientTransformation, trained: TrainState | Auxiliary, grads: Any
) -> tuple[TrainState | Auxiliary, tuple[jax.Array, jax.Array]]:
    """Return `trained` with other parameters and optimiser's state, and the norms of gradient and update."""
    grads = packing.pack(grads, trained.params)
    updates, opt_state = optimizer.update(grads, trained.opt_state, trained.params)
    new = trained.replace(params=optax.apply_updates(trained.params, updates), opt_state=opt_state)
    # Of the update too: an optimiser's own numbers can overflow.
    return new, (optax.global_norm(grads), optax.global_norm(updates))


def _loss_and_grads(
    objective: Objective, parts: int, mesh: Mesh, params: Any, batch: stage.Batch, draws: stage.Draws
) -> tuple[tuple[jax.Array, Metrics], Any]:
    """Return ((loss, metrics), gradient) of the batch, computed in `parts` parts to save memory."""
    value_and_grad = jax.value_and_grad(objective, has_aux=True)
    if parts == 1:
        return value_and_grad(params, batch, sharding.constrain_batch(draws, mesh))

    # Part i takes every parts-th pair of rows, so that each device keeps its own, and rows of a prior their places.
    rows = len(draws.t)
    pair = 2 if rows % (2 * parts) == 0 else 1

    def in_parts(array: jax.Array) -> jax.Array:
        return array.reshape(-1, parts, pair, *array.shape[1:]).swapaxes(0, 1).reshape(parts, -1, *array.shape[1:])

    split = jax.tree.map(in_parts, (batch, draws))
    split = sharding.constrain_batch(split, mesh, axis=1)

    def add(total, part):
        return jax.tree.map(jnp.add, total, value_and_grad(params, *part)), None

    shapes = jax.eval_shape(value_and_grad, params, *jax.tree.map(lambda a: a[0], split))
    zero = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    ((loss_sum, sums), grads), _ = jax.lax.scan(add, zero, split)
    return (loss_sum / parts, sums), jax.tree.map(lambda leaf: leaf / parts, grads)
