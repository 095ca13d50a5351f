"""Packed trees hold what their trees hold, and optimisers update both alike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax import sharding
from imagen_jax.config import OptimConfig
from imagen_jax.training import optim
from imagen_jax.training.packing import Packing


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    shapes = {
        "conv_in": {"kernel": (3, 3, 2, 16), "bias": (16,)},
        "first": {"kernel": (3, 3, 8, 16), "bias": (16,)},
        "second": {"kernel": (3, 3, 8, 16), "bias": (16,)},
        "dense": {"kernel": (72, 16), "bias": (16,), "scale": ()},
        "large": {"kernel": (72, 1024)},
    }
    make = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return jax.tree.map(make, shapes, is_leaf=lambda node: isinstance(node, tuple))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 2**17)


def assert_same(a, b, tolerance=0.0):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), a, b)


def test_small_arrays_are_packed_by_shape_and_large_ones_and_the_ends_are_left(params):
    packing = Packing(params)
    packed = packing.pack(params)
    shapes = {name: leaf.shape for name, leaf in packed.items()}
    assert shapes == {
        "conv_in/kernel": (3, 3, 2, 16),
        "large/kernel": (72, 1024),
        "matrices 72x16 float32": (3, 72, 16),
        "vectors float32": (4 * 16 + 1,),
    }
    assert_same(packing.unpack(packed), params)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_packed_parameters_are_updated_as_the_tree_is(params, optimizer):
    """Also from the state of steps before, in the layout of the tree."""
    config = OptimConfig(optimizer=optimizer, learning_rate=0.1, warmup_steps=1, weight_decay=0.1)
    assert optim.is_packable(config)
    transformation = optim.make_optimizer(config)
    grads = jax.tree.map(jnp.cos, params)

    def twice(pack, unpack, pack_state, unpack_state):
        state, now = transformation.init(params), params
        for _ in range(2):
            updates, new = transformation.update(pack(grads), pack_state(state), pack(now))
            state, now = unpack_state(new), unpack(optax.apply_updates(pack(now), updates))
        return state, now

    packing, same = Packing(params), lambda tree: tree
    expected = twice(same, same, same, same)
    found = twice(packing.pack, packing.unpack, packing.pack_state, packing.unpack_state)
    assert_same(found, expected, 1e-5)
