import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.conftest import KEY, MODULES, inputs, perturbed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "ways"),
    [("base", [(True, "none"), (False, "full")]), ("efficient", [(True, "save_convs"), (False, "full")])],
)
def test_scanned_and_rematerialised_blocks_are_the_same_function(name, ways):
    """The same parameters give the same output and gradients, dropout included."""
    attention = {"attention": (True,)} if name == "base" else {"self_attention": (True,), "cross_attention": (False,)}
    one_level = {"channels": (8,), "num_res_blocks": (3,), "dropout": 0.2, **attention}
    network = dataclasses.replace(MODULES[name], **one_level)
    args = inputs(name)
    params = perturbed(network, *args)

    def loss(network, params):
        out = network.apply(params, *args, train=True, rngs={"dropout": jax.random.key(5)})
        return jnp.mean(jnp.sin(out)), out

    value = lambda network: jax.jit(jax.value_and_grad(functools.partial(loss, network), has_aux=True))(
        params
    )
    (_, expected), gradient = value(network)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    shapes = jax.tree.map(jnp.shape, params)
    for scan, remat in ways:
        compiled = dataclasses.replace(network, scan=scan, remat=remat)
        (_, out), other = value(compiled)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest)
        assert jax.tree.map(jnp.shape, jax.eval_shape(compiled.init, KEY, *args)) == shapes
        loops = str(jax.make_jaxpr(functools.partial(loss, compiled))(params)).count(" scan[")
        assert (loops > 0) == scan
