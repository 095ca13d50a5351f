"""Small networks, their inputs, and parameters without zeros."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import EfficientUNet, UNet
from imagen_jax.structs import Cond, TextCond

KEY = jax.random.key(0)
MODULES = {
    "base": UNet(channels=(8, 16), num_res_blocks=(1, 2), attention=(False, True), embedding=32, head_dim=8),
    "efficient": EfficientUNet(
        stem_channels=8,
        channels=(8, 16),
        num_res_blocks=(1, 2),
        self_attention=(False, True),
        cross_attention=(True, False),
        embedding=32,
        num_heads=2,
    ),
}


def text_cond(batch=2, length=5, width=12):
    mask = jnp.arange(length)[None, :] < jnp.array([length, 3])[:batch, None]
    return TextCond(jax.random.normal(jax.random.key(1), (batch, length, width)), mask)


def inputs(name, size=8):
    z_t = jax.random.normal(jax.random.key(2), (2, size, size, 3))
    logsnr = jnp.array([-1.0, 2.0])
    low_res = {"low_res_noised": z_t * 0.5, "aug_logsnr": logsnr} if name == "efficient" else {}
    return z_t, logsnr, Cond(text_cond(), **low_res)


@functools.partial(jax.jit, static_argnums=0)
def init(network, *args):
    return network.init(KEY, *args)


@functools.partial(jax.jit, static_argnums=0)
def apply(network, params, *args):
    return network.apply(params, *args)


def perturbed(network, *args):
    """Parameters without zeros: at initialisation the zero-initialised layers hide everything."""
    shapes = jax.eval_shape(network.init, KEY, *args)
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), "float32"), shapes)
