"""The train state: its shapes and shards, before anything is computed."""

import jax

from imagen_jax import sharding
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
