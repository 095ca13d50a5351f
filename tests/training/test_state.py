"""The train state: its shapes and shards, before anything is computed."""

import dataclasses

import jax
import numpy as np
import pytest

from imagen_jax import sharding
from imagen_jax.config import LoraConfig
from imagen_jax.training import state as states


def test_the_abstract_state_has_the_shapes_of_the_real_one_and_the_shards_of_the_mesh(
    tiny_configs, monkeypatch
):
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 256)
    config = tiny_configs[0]
    real = jax.eval_shape(lambda: states.new_state(config))
    for ways in (1, 4):
        abstract = states.abstract_state(config, sharding.make_mesh(fsdp=ways))
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), abstract) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), real
        )
        assert jax.tree.structure(states.shardings(abstract)) == jax.tree.structure(real)
        is_split = [leaf.sharding.shard_shape(leaf.shape) != leaf.shape for leaf in jax.tree.leaves(abstract)]
        assert any(is_split) == (ways > 1)
    assert states.count(real.params) == states.count(real.ema_params) == sum(
        leaf.size for leaf in jax.tree.leaves(real.params)
    )


@pytest.mark.slow
def test_adapters_are_trained_and_all_parameters_frozen(tiny_configs, monkeypatch):
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 256)
    plain = tiny_configs[0]
    config = dataclasses.replace(plain, lora=LoraConfig(rank=2, scale=0.5))
    abstract = states.abstract_state(config, sharding.make_mesh(fsdp=4))
    whole = jax.eval_shape(lambda: states.new_state(plain)).params
    shapes = lambda tree: jax.tree.map(lambda leaf: leaf.shape, tree)
    assert shapes(abstract.frozen) == shapes(whole)
    assert shapes(abstract.params) == shapes(abstract.ema_params)
    assert states.count(abstract.opt_state) < 3 * states.count(abstract.params) < states.count(whole) / 2
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(abstract.frozen))
    base = jax.tree.map(lambda s: jax.device_put(np.full(s.shape, 2.0, s.dtype), s.sharding), abstract.frozen)
    state = states.init_state(config, abstract, base)
    assert all(a is b for a, b in zip(*map(jax.tree.leaves, (state.frozen, base)), strict=True))  # not copied
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == states.shardings(abstract)
    again = states.init_state(config, abstract, base)
    jax.tree.map(np.testing.assert_array_equal, state.params, again.params)
    merged = states.network_params(config, state, state.ema_params)
    jax.tree.map(np.testing.assert_array_equal, merged, base)
