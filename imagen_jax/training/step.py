"""One optimisation step: a pure function of (state, batch)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from imagen_jax import sharding, stage
from imagen_jax.config import StageConfig
from imagen_jax.diffusion import losses
from imagen_jax.structs import TrainState
from imagen_jax.training.optim import learning_rate, make_optimizer, update_ema

StepFn = Callable[[TrainState, stage.Batch], tuple[TrainState, dict[str, jax.Array]]]


def make_train_step(config: StageConfig, mesh: Mesh) -> StepFn:
    """step(state, batch) -> (state, metrics), to be jitted.

    Args:
      config: of the stage. Batches have config.optim.batch_size rows; see `stage.image_losses`.
      mesh: as from `sharding.make_mesh`; state and batch lie on it.

    Metrics are the scalars loss, grad_norm, learning_rate, ema_distance (of the averaged parameters from the others, as
    a share of their norm) and skipped, and [K] loss_sums and loss_counts of `losses.by_logsnr`. A step whose loss or
    gradient is not finite changes nothing but the step's number, and has skipped = 1.

    All randomness is derived from (seed, state.step), so a restored run repeats it exactly.
    """
    optimizer = make_optimizer(config.optim)
    root = stage.named_key(jax.random.key(config.seed), "train")

    def step(state: TrainState, batch: stage.Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        draws = stage.draw(config, jax.random.fold_in(root, state.step), config.optim.batch_size)
        with sharding.use_mesh(mesh):
            (loss, (sums, counts)), grads = _loss_and_grads(config, mesh, state.params, batch, draws)
        grad_norm = optax.global_norm(grads)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        is_finite &= jnp.isfinite(optax.global_norm(updates))  # an optimiser's own numbers can overflow
        params = optax.apply_updates(state.params, updates)
        new = TrainState(
            step=state.step,
            params=params,
            ema_params=update_ema(state.ema_params, params, state.step, config.optim.ema_decay),
            opt_state=opt_state,
        )
        new = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, state)
        apart = optax.global_norm(jax.tree.map(jnp.subtract, new.params, new.ema_params))
        return new.replace(step=state.step + 1), {
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": learning_rate(config.optim)(state.step),
            "ema_distance": apart / optax.global_norm(new.params),
            "skipped": 1 - is_finite.astype(jnp.int32),
            "loss_sums": sums,
            "loss_counts": counts,
        }

    return step


def _loss_and_grads(
    config: StageConfig, mesh: Mesh, params: Any, batch: stage.Batch, draws: stage.Draws
) -> tuple[tuple[jax.Array, tuple[jax.Array, jax.Array]], Any]:
    """((mean loss, the losses by log-SNR), gradient) of the batch, in `accumulation` parts to save memory."""
    parts = config.optim.accumulation

    def loss(params: Any, config: StageConfig, batch: stage.Batch, draws: stage.Draws) -> Any:
        per_image, logsnr_t = stage.image_losses(params, config, batch, draws)
        return jnp.mean(per_image), losses.by_logsnr(per_image, logsnr_t)

    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if parts == 1:
        return value_and_grad(params, config, batch, sharding.constrain_batch(draws, mesh))

    # Part i takes every parts-th row, so that each device keeps its own rows.
    split = jax.tree.map(
        lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), (batch, draws)
    )
    split = sharding.constrain_batch(split, mesh, axis=1)

    def add(total, part):
        return jax.tree.map(jnp.add, total, value_and_grad(params, config, *part)), None

    by_logsnr = (jnp.zeros(len(losses.BUCKETS)),) * 2
    zero = ((jnp.zeros(()), by_logsnr), jax.tree.map(jnp.zeros_like, params))
    ((loss_sum, by_logsnr), grads), _ = jax.lax.scan(add, zero, split)
    return (loss_sum / parts, by_logsnr), jax.tree.map(lambda leaf: leaf / parts, grads)
