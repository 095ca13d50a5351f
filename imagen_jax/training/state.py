"""The train state, created in its shards."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax import compilation, sharding, stage
from imagen_jax.config import OBJECTIVES, OPTIMIZERS, StageConfig
from imagen_jax.models import lora
from imagen_jax.structs import Auxiliary, TrainState
from imagen_jax.training import packing
from imagen_jax.training.optim import ENDS, make_optimizer


def new_state(config: StageConfig, params: Any = None) -> TrainState:
    """Return the state of step 0. With a `lora.rank`, its `params` are adapters and `frozen` all parameters.

    An auxiliary network begins as a copy of the stage's own.

    Args:
      config: of the stage.
      params: initial parameters; None: random ones, a function of the seed alone.
    """
    key = jax.random.key(config.seed)
    if params is None:
        params = stage.init(config, stage.named_key(key, "init"))
    optimizer, frozen, auxiliary = make_optimizer(config.optim), None, None
    if getattr(OBJECTIVES[config.optim.objective], "has_auxiliary", False):
        auxiliary = Auxiliary(jax.tree.map(jnp.copy, params), optimizer.init(params))
    if config.lora.rank:
        frozen = params
        params = lora.init(stage.named_key(key, "lora"), frozen, config.lora.rank, config.lora.targets)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        frozen=frozen,
        auxiliary=auxiliary,
    )


def network_params(config: StageConfig, state: TrainState, params: Any) -> Any:
    """Return all parameters of the network.

    Args:
      config: of the stage.
      state: whose frozen parameters are taken.
      params: the trainable ones, or their average, with an array for each.
    """
    return lora.merge(state.frozen, params, config.lora.scale) if config.lora.rank else state.merged(params)


def abstract_state(config: StageConfig, mesh: Mesh) -> TrainState:
    """Return the shapes of the state of `config`, as ShapeDtypeStructs with their shardings on `mesh`."""
    shapes = jax.eval_shape(lambda: new_state(config))
    shardings = sharding.state_sharding(shapes, mesh)
    return jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)


def packed_shapes(config: StageConfig, abstract: TrainState) -> TrainState:
    """Return `abstract`, from `abstract_state`, as a training loop holds it: packed, see `packing`.

    It stays as it is if an array is sharded, or if the optimiser computes something for each parameter as a whole.
    """
    is_replicated = all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(abstract))
    optimizer = OPTIMIZERS[config.optim.optimizer]
    is_elementwise = getattr(optimizer, "is_elementwise", False)
    if not is_replicated or not getattr(optimizer, "is_packable", False):
        return abstract
    params = packing.shapes(abstract.params, () if is_elementwise else ENDS, is_elementwise)
    opt_state = jax.eval_shape(make_optimizer(config.optim).init, params)
    auxiliary = None if abstract.auxiliary is None else Auxiliary(params, opt_state)
    packed = abstract.replace(params=params, ema_params=params, opt_state=opt_state, auxiliary=auxiliary)
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=abstract.step.sharding), packed)


def shardings(abstract: Any) -> Any:
    """Return the shardings of an abstract state."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)


def init_state(config: StageConfig, abstract: TrainState, params: Any = None) -> TrainState:
    """Return `new_state(config, params)`, laid out as `abstract` (from `abstract_state`), each device its shards."""
    compiled = partial(jax.jit, compiler_options=compilation.options(jax.default_backend()))
    if params is None or abstract.frozen is None:
        return compiled(partial(new_state, config), out_shardings=shardings(abstract))(params)
    own = lambda: new_state(config).replace(frozen=None)
    state = compiled(own, out_shardings=shardings(abstract.replace(frozen=None)))()
    return state.replace(frozen=params)  # not copied


def count(params: Any) -> int:
    """Return the number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
