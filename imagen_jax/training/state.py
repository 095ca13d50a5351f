"""The train state, born sharded."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax import sharding, stage
from imagen_jax.config import StageConfig
from imagen_jax.structs import TrainState
from imagen_jax.training.optim import make_optimizer


def new_state(config: StageConfig) -> TrainState:
    """The state of step 0. Pure: a function of `config` (and its seed) alone."""
    params = stage.init(config, stage.named_key(jax.random.key(config.seed), "init"))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=make_optimizer(config.optim).init(params),
    )


def abstract_state(config: StageConfig, mesh: Mesh) -> TrainState:
    """The state of `config` as ShapeDtypeStructs with their shardings on `mesh`, without making it."""
    shapes = jax.eval_shape(lambda: new_state(config))
    shardings = sharding.state_sharding(shapes, mesh)
    return jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)


def shardings(abstract: Any) -> Any:
    """The shardings of an abstract state."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def init_state(config: StageConfig, abstract: TrainState) -> TrainState:
    """The new state of `config`, laid out as `abstract` says (`abstract_state`); each device computes its shards."""
    return jax.jit(lambda: new_state(config), out_shardings=shardings(abstract))()


def count(params: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
