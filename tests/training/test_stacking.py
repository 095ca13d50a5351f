"""Stacks hold what their trees hold, and Muon updates both alike."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax import sharding
from imagen_jax.config import OptimConfig
from imagen_jax.training import optim
from imagen_jax.training.stacking import Stacking, is_stack


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


def test_small_kernels_are_stacked_by_shape_and_all_others_are_left(params):
    stacking = Stacking(params, optim._is_matrix)
    found = stacking.stack(params)
    stacks = {name: leaf.shape for name, leaf in found.items() if is_stack(name)}
    assert stacks == {"matrices 72x16 float32": (3, 72, 16)}
    biases = {f"{name}/bias" for name in ("conv_in", "first", "second", "dense")}
    others = {"conv_in/kernel", "large/kernel", "dense/scale", *biases}
    assert found.keys() - stacks.keys() == others
    assert_same(stacking.unstack(found), params)


def test_stacked_matrices_are_updated_as_one_by_one(params, monkeypatch):
    """Also from the state of steps before, whose layout stays that of the parameters."""
    config = OptimConfig(optimizer="muon", learning_rate=0.1, warmup_steps=1, weight_decay=0.1)
    grads = jax.tree.map(jnp.cos, params)

    def twice():
        optimizer = optim.make_optimizer(config)
        state, now = optimizer.init(params), params
        for _ in range(2):
            updates, state = optimizer.update(grads, state, now)
            now = optax.apply_updates(now, updates)
        return state, now

    found = twice()
    monkeypatch.setattr(optim, "stacked", lambda optimizer, is_matrix: optimizer)
    assert_same(found, twice(), 1e-5)
