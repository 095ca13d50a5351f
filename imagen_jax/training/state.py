"""The train state, created in its shards."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax import sharding, stage
from imagen_jax.config import StageConfig
from imagen_jax.structs import TrainState
from imagen_jax.training.optim import make_optimizer


def new_state(config: StageConfig, params: Any = None) -> TrainState:
    """Return the state of step 0.

    Args:
      config: of the stage.
      params: initial parameters; None: random ones, a function of the seed alone.
    """
    if params is None:
        params = stage.init(config, stage.named_key(jax.random.key(config.seed), "init"))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=make_optimizer(config.optim).init(params),
    )


def abstract_state(config: StageConfig, mesh: Mesh) -> TrainState:
    """Return the shapes of the state of `config`, as ShapeDtypeStructs with their shardings on `mesh`."""
    shapes = jax.eval_shape(lambda: new_state(config))
    shardings = sharding.state_sharding(shapes, mesh)
    return jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)


def shardings(abstract: Any) -> Any:
    """Return the shardings of an abstract state."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def init_state(config: StageConfig, abstract: TrainState, params: Any = None) -> TrainState:
    """Return `new_state(config, params)`, laid out as `abstract` (from `abstract_state`), each device its shards."""
    return jax.jit(partial(new_state, config), out_shardings=shardings(abstract))(params)


def count(params: Any) -> int:
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
