"""Adapters: which kernels have them, and that merging them computes what they compute beside the kernels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from imagen_jax.models import lora
from imagen_jax.models.attention import TextAttention
from imagen_jax.models.if_unet import IFUNetConfig
from imagen_jax.models.layers import conv3x3
from tests.conftest import random_array
from tests.models.conftest import KEY, MODULES, inputs, text_cond


def random(tree, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random_array(rng, leaf.shape), tree)


@pytest.mark.parametrize("name", MODULES)
def test_attention_and_text_are_adapted_by_default_and_all_kernels_on_request(name):
    shapes = jax.eval_shape(MODULES[name].init, KEY, *inputs(name))["params"]
    found = {
        targets: lora.pairs(jax.eval_shape(lambda t=targets: lora.init(KEY, shapes, 2, t)))
        for targets in ("attention", "all")
    }
    flat = flatten_dict(shapes)
    assert set(found["all"]) == {path for path in flat if path[-1] == "kernel"}
    modules = {path[-2] for path in found["attention"]}
    assert modules == {"query", "key", "value", "key_value", "text_key_value", "out", "text"}
    assert not any("conv" in part for path in found["attention"] for part in path)
    for path, (a, b) in found["all"].items():
        assert a.shape == (flat[path].size // flat[path].shape[-1], 2) and b.shape == (2, flat[path].shape[-1])


def test_a_network_without_targets_is_refused():
    with pytest.raises(ValueError, match="^lora.targets must name kernels that the network has; got 'attention': take"):
        lora.init(KEY, {"conv": {"kernel": jnp.ones((3, 3, 2, 4))}}, 2)


PARAMS = {"text": {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)}, "conv": {"kernel": jnp.ones((3, 3, 2, 5))}}


def test_new_adapters_change_nothing_and_merged_ones_add_their_product():
    adapters = lora.init(KEY, PARAMS, 3, "all")
    assert float(jnp.abs(adapters["conv"]["a"]).min()) > 0
    jax.tree.map(np.testing.assert_array_equal, lora.merge(PARAMS, adapters), PARAMS)
    one, other = random(adapters), random(adapters, 1)
    merged = lora.merge(lora.merge(PARAMS, one, 0.5), other, -2.0)
    swapped = lora.merge(lora.merge(PARAMS, other, -2.0), one, 0.5)
    for module, kernel in (("text", (6, 4)), ("conv", (18, 5))):
        product = lambda each, module=module: np.asarray(each[module]["a"]) @ np.asarray(each[module]["b"])
        wanted = 1 + 0.5 * product(one) - 2 * product(other)
        np.testing.assert_allclose(merged[module]["kernel"].reshape(kernel), wanted, atol=1e-6)
        np.testing.assert_allclose(swapped[module]["kernel"].reshape(kernel), wanted, atol=1e-6)
    assert merged["text"]["bias"] is PARAMS["text"]["bias"]


class Layers(nn.Module):
    """A convolution, and attention to pixels and text."""

    @nn.compact
    def __call__(self, x, text):
        return TextAttention(2, 4, name="attention")(conv3x3(8, jnp.float32, "conv")(x), text)


def beside(adapters, weight):
    """An interceptor that adds what adapters compute beside the layer: (x a) b."""

    def call(following, args, options, context):
        own, module = adapters, context.module
        for part in module.path:
            own = own.get(part, {})
        out = following(*args, **options)
        if context.method_name != "__call__" or not isinstance(module, nn.Dense | nn.Conv) or "a" not in own:
            return out
        (x,), a = args, own["a"]
        if isinstance(module, nn.Dense):
            return out + weight * (x @ a) @ own["b"]
        kernel = a.reshape(3, 3, x.shape[-1], -1)
        low = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return out + weight * low @ own["b"]

    return call


NETWORKS = {
    "layers": (Layers(), (jax.random.normal(KEY, (2, 4, 4, 8)), text_cond())),
    "base": (MODULES["base"], inputs("base")),
    "efficient": (MODULES["efficient"], inputs("efficient")),
    "if_unet": (
        IFUNetConfig(
            (16, 32), (1, 1), (False, True), embedding=32, text_width=32, head_dim=8, pool_heads=2, groups=8
        ).build(out_channels=6, dtype=jnp.float32, scan=False, remat="none"),
        (inputs("base")[0], jnp.array([0.2, 0.9]), inputs("base")[2]),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_adapters_compute_what_they_compute_beside_the_layers(name):
    """All kernels of single layers, and attention and text in whole networks.

    Attention that pools the text multiplies the kernels of its keys and values themselves, so that nothing is beside
    these: they are merged for both.
    """
    network, given = NETWORKS[name]
    params = random(jax.eval_shape(network.init, KEY, *given)["params"])
    targets = "all" if name == "layers" else "attention"
    adapters = random(jax.eval_shape(lambda: lora.init(KEY, params, 2, targets)), 1)
    flat = flatten_dict(adapters)
    is_pooling = lambda path: path[-3:-1] in (("text_pool", "key"), ("text_pool", "value"))
    pooling, others = ({path: flat[path] for path in flat if is_pooling(path) == each} for each in (True, False))
    assert bool(pooling) == (name != "layers")

    @jax.jit
    def unmerged():
        partly = lora.merge(params, unflatten_dict(pooling), 0.7) if pooling else params
        with nn.intercept_methods(beside(unflatten_dict(others), 0.7)):
            return network.apply({"params": partly}, *given)

    merged = jax.jit(lambda: network.apply({"params": lora.merge(params, adapters, 0.7)}, *given))()
    plain = jax.jit(lambda: network.apply({"params": params}, *given))()
    scale = float(jnp.abs(plain).max())
    np.testing.assert_allclose(merged, unmerged(), atol=1e-5 * max(1.0, scale))
    assert float(jnp.abs(merged - plain).max()) > 1e-3 * scale
