import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import sharding
from imagen_jax.training import optim, packing
from imagen_jax.training import state as states

SHAPES = {
    "conv_in": {"kernel": (3, 3, 4, 8), "bias": (8,)},  # the shape of hidden layers: kept out of their stack
    "first": {"conv": {"kernel": (3, 3, 4, 8), "bias": (8,)}, "dense": {"kernel": (36, 8)}, "norm": {"scale": (4,)}},
    "second": {"conv": {"kernel": (3, 3, 4, 8), "bias": (8,)}, "square": {"kernel": (8, 8)}},
    "large": {"kernel": (512, 513)},
}


def arrays(seed):
    rng = np.random.default_rng(seed)
    draw = lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    return jax.tree.map(draw, SHAPES, is_leaf=lambda node: isinstance(node, tuple))


def on_one_device(tree):
    """The shapes of a tree, on a mesh of one device."""
    whole = sharding.replicated(sharding.make_mesh(devices=jax.devices()[:1]))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), tree)


def assert_close(a, b, rtol=0.0, atol=0.0):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def test_equal_matrices_are_stacked_and_vectors_joined():
    packed = packing.shapes(arrays(0), alone=optim.ENDS)
    assert {name: leaf.shape for name, leaf in packed.arrays.items()} == {
        "36x8": (3, 36, 8), "vectors": (28,), "conv_in/kernel": (3, 3, 4, 8), "second/square/kernel": (8, 8),
        "large/kernel": (512, 513),
    }  # fmt: skip
    assert set(packed.stacks) == {"36x8"}


def test_small_matrices_of_any_shape_are_joined_for_what_is_done_by_number():
    packed = packing.shapes(arrays(0), is_elementwise=True)
    shapes = {"matrices": (1, 4 * 288 + 64), "vectors": (28,), "large/kernel": (512, 513)}
    assert {name: leaf.shape for name, leaf in packed.arrays.items()} == shapes and not packed.stacks


def test_other_numbers_than_float32_and_large_arrays_stay_as_they_are():
    tree = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3)), "c": jnp.ones((2, 3), jnp.bfloat16)}
    assert {name: leaf.shape for name, leaf in packing.shapes(tree).arrays.items()} == {"2x3": (2, 2, 3), "c": (2, 3)}
    large = {"a": jnp.ones((512, 512)), "b": jnp.ones((512, 512))}
    assert set(packing.shapes(large).arrays) == {"a", "b"}


@pytest.mark.parametrize("is_elementwise", [False, True])
def test_unpacking_returns_what_was_packed(is_elementwise):
    tree = arrays(0)
    like = on_one_device(packing.shapes(tree, is_elementwise=is_elementwise))
    packed = packing.pack_arrays(tree, like)
    assert_close(packing.unpack_arrays(packed), tree)
    assert_close(jax.jit(lambda tree: packing.pack(tree, like))(tree), packed)
    assert_close(jax.jit(packing.unpack)(packed), tree)
    assert packing.pack_arrays(tree, tree)["large"]["kernel"] is tree["large"]["kernel"]


@pytest.mark.parametrize(("name", "is_elementwise"), [("adamw", False), ("adamw", True), ("muon", False)])
def test_optimisers_update_packed_parameters_as_they_do_single_ones(tiny_configs, name, is_elementwise):
    """Their states too: a packed one unpacks to the tree that a checkpoint holds, and is packed from it again."""
    config = dataclasses.replace(tiny_configs[0].optim, optimizer=name, weight_decay=0.1)
    optimizer, params = optim.make_optimizer(config), arrays(0)
    like = on_one_device(packing.shapes(params, optim.ENDS, is_elementwise))
    packed = packing.pack_arrays(params, like)
    state, packed_state = optimizer.init(params), optimizer.init(packed)
    assert_close(packing.unpack_arrays(packed_state), state)
    update = jax.jit(optimizer.update)
    for seed in (1, 2):
        grads = arrays(seed)
        updates, state = update(grads, state, params)
        packed_updates, packed_state = update(packing.pack_arrays(grads, like), packed_state, packed)
        assert_close(packing.unpack_arrays((packed_updates, packed_state)), (updates, state), 1e-4, 1e-7)
    again = packing.pack_arrays(packing.unpack_arrays(packed_state), on_one_device(packed_state))
    assert_close(again, packed_state)


@pytest.mark.parametrize(
    ("name", "fsdp", "is_packed"), [("adamw", 1, True), ("muon", 1, True), ("adafactor", 1, False), ("muon", 4, False)]
)
def test_what_is_replicated_is_packed_where_the_optimiser_allows(tiny_configs, monkeypatch, name, fsdp, is_packed):
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 256)
    optimizer = dataclasses.replace(tiny_configs[0].optim, optimizer=name)
    config = dataclasses.replace(tiny_configs[0], optim=optimizer)
    abstract = states.abstract_state(config, sharding.make_mesh(fsdp))
    packed = states.packed_shapes(config, abstract)
    if is_packed:
        assert len(jax.tree.leaves(packed)) < len(jax.tree.leaves(abstract)) / 3
        assert (packed.params.stacks == {}) == (name == "adamw")
        assert states.count(packed) == states.count(abstract)
    else:
        assert packed is abstract
