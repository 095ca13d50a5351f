import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from imagen_jax import EfficientUNet, UNet
from imagen_jax.models import convolution
from imagen_jax.models.attention import AttentionPool, TextAttention
from imagen_jax.models.layers import GroupNorm
from imagen_jax.structs import Cond, TextCond

KEY = jax.random.key(0)
NETWORKS = {
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


@pytest.mark.parametrize("name", list(NETWORKS))
def test_output_is_zero_at_initialisation_with_the_shape_of_the_image(name):
    network, args = NETWORKS[name], inputs(name)
    out = apply(network, init(network, *args), *args)
    np.testing.assert_array_equal(out, jnp.zeros_like(args[0]))
    assert out.dtype == jnp.float32


@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_input_and_every_parameter_matters(name):
    network, args = NETWORKS[name], inputs(name)
    params = perturbed(network, *args)
    loss = lambda params, args: jnp.sum(network.apply(params, *args) ** 2)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True))
    of_params, (of_z, of_logsnr, of_cond) = gradient(params, args)
    gradients = flatten_dict(of_params, sep="/") | {"z_t": of_z, "logsnr_t": of_logsnr}
    gradients |= {"text": of_cond.text.embeddings, "low_res_noised": of_cond.low_res_noised, "aug": of_cond.aug_logsnr}
    # A key's bias shifts all logits alike, so softmax ignores that part; its weights are in one array.
    dead = [k for k, g in gradients.items() if g is not None and not np.abs(g).max() > 0]
    assert all(key.endswith("/key/bias") for key in dead), dead


@pytest.mark.parametrize("name", list(NETWORKS))
def test_padding_of_the_text_does_not_matter(name):
    network, (z_t, logsnr, cond) = NETWORKS[name], inputs(name)
    params = perturbed(network, z_t, logsnr, cond)
    out = apply(network, params, z_t, logsnr, cond)
    garbage = jnp.where(cond.text.mask[..., None], cond.text.embeddings, 100.0)
    longer = TextCond(
        jnp.pad(garbage, ((0, 0), (0, 4), (0, 0)), constant_values=-7.0),
        jnp.pad(cond.text.mask, ((0, 0), (0, 4))),
    )
    np.testing.assert_allclose(
        apply(network, params, z_t, logsnr, cond.replace(text=longer)), out, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", list(NETWORKS))
def test_images_of_a_batch_are_independent_and_need_not_be_square(name):
    network, (z_t, logsnr, cond) = NETWORKS[name], inputs(name)
    params = perturbed(network, z_t, logsnr, cond)
    wide = lambda a: None if a is None else jnp.concatenate([a, a], axis=2)
    args = wide(z_t), logsnr, cond.replace(low_res_noised=wide(cond.low_res_noised))
    out = apply(network, params, *args)
    alone = apply(network, params, *jax.tree.map(lambda a: a[1:], args))
    assert out.shape == (2, 8, 16, 3)
    np.testing.assert_allclose(out[1:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_bfloat16_computes_the_same_within_its_precision(name):
    network, args = NETWORKS[name], inputs(name)
    params = perturbed(network, *args)
    half = dataclasses.replace(network, dtype=jnp.bfloat16)
    assert jax.tree.leaves(init(half, *args))[0].dtype == jnp.float32
    exact, rough = apply(network, params, *args), apply(half, params, *args)
    assert jnp.linalg.norm(exact - rough) < 0.05 * jnp.linalg.norm(exact)


def test_efficient_unet_works_at_low_resolution():
    """Down-sampling comes first: no residual block ever runs at full resolution."""
    network, args = NETWORKS["efficient"], inputs("efficient")
    _, state = jax.jit(functools.partial(network.apply, capture_intermediates=True))(
        init(network, *args), *args
    )
    sizes = {
        key[0]: value[0].shape[1]
        for key, value in flatten_dict(state["intermediates"]).items()
        if "block" in key[0] and len(key) == 2
    }
    assert sizes and max(sizes.values()) == args[0].shape[1] // 2
    assert sizes["down_0_block_0"] == sizes["up_0_block_0"] == 4 and sizes["down_1_block_1"] == 2


def test_group_norm_agrees_with_flax():
    import flax.linen as nn

    x = 3 + 2 * jax.random.normal(KEY, (2, 5, 6, 24))
    params = {"params": {"scale": jnp.linspace(0.5, 1.5, 24), "bias": jnp.linspace(-1, 1, 24)}}
    reference = nn.GroupNorm(num_groups=2, epsilon=1e-5).apply(params, x)
    np.testing.assert_allclose(GroupNorm().apply(params, x), reference, atol=2e-5)


def test_group_norm_film_scales_and_shifts_its_output():
    x, emb = jax.random.normal(KEY, (2, 4, 4, 8)), jax.random.normal(jax.random.key(1), (2, 6))
    params = perturbed(GroupNorm(), x, emb)
    plain = {"params": {k: params["params"][k] for k in ("scale", "bias")}}
    film = params["params"]["film"]
    scale, shift = jnp.split(jax.nn.silu(emb) @ film["kernel"] + film["bias"][None], 2, axis=-1)
    expected = GroupNorm().apply(plain, x) * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(GroupNorm().apply(params, x, emb), expected, rtol=1e-4, atol=1e-5)


def test_attention_agrees_with_the_textbook():
    """One softmax over [text, pixels], masked text left out, in float64."""
    x, text = jax.random.normal(KEY, (2, 2, 3, 8)), text_cond()
    module = TextAttention(num_heads=2, head_dim=4)
    variables = perturbed(module, x, text)
    p = jax.tree.map(np.float64, variables["params"])
    dense = lambda name, h: h @ p[name]["kernel"] + p[name]["bias"]
    h = np.float64(GroupNorm().apply({"params": variables["params"]["norm"]}, x)).reshape(2, 6, 8)
    tokens = np.float64(text.embeddings)
    tokens = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
    tokens = tokens * p["text_norm"]["scale"] + p["text_norm"]["bias"]
    key_value = np.concatenate([dense("text_key_value", tokens), dense("key_value", h)], axis=1)
    expected = np.zeros((2, 6, 8))
    for b in range(2):
        valid = np.concatenate([np.asarray(text.mask[b]), np.ones(6, bool)])
        for n in range(2):
            head = slice(4 * n, 4 * n + 4)
            logits = dense("query", h[b])[:, head] @ key_value[b][:, :8][valid][:, head].T / 2
            weight = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
            expected[b, :, head] = weight @ key_value[b][:, 8:][valid][:, head]
    expected = x + dense("out", expected).reshape(x.shape)
    np.testing.assert_allclose(module.apply(variables, x, text), expected, rtol=1e-4, atol=1e-5)


def test_pooling_ignores_the_order_of_tokens():
    text = text_cond()
    module = AttentionPool(features=16, head_dim=8)
    params = perturbed(module, text)
    order = jnp.array([2, 0, 1, 4, 3])  # keeps each row's padding at its end
    shuffled = TextCond(text.embeddings[:, order], text.mask[:, order])
    np.testing.assert_allclose(module.apply(params, text), module.apply(params, shuffled), atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 9), (64, 64)])
def test_convolution_gradients_agree_with_xla(stride, height, width):
    x = jax.random.normal(KEY, (6, height, width, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    padding = ((1, 1), (1, 1))

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    ours = lambda x, kernel: convolution.conv_general_dilated(x, kernel, (stride, stride), padding)
    out, vjp = jax.vjp(plain, x, kernel)
    np.testing.assert_array_equal(ours(x, kernel), out)
    cotangent = jax.random.normal(jax.random.key(2), out.shape)
    for got, expected in zip(jax.vjp(ours, x, kernel)[1](cotangent), vjp(cotangent), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_scanned_and_rematerialised_blocks_are_the_same_function(name):
    """The same parameters give the same output and gradients, dropout included."""
    deeper = {"channels": (8, 16), "num_res_blocks": (2, 2), "dropout": 0.2}
    network = dataclasses.replace(NETWORKS[name], **deeper)
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
    for scan, remat in ((True, "none"), (False, "full"), (True, "save_convs")):
        compiled = dataclasses.replace(network, scan=scan, remat=remat)
        (_, out), other = value(compiled)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest)
        assert jax.tree.map(jnp.shape, jax.eval_shape(compiled.init, KEY, *args)) == shapes
        loops = str(jax.make_jaxpr(functools.partial(loss, compiled))(params)).count(" scan[")
        assert (loops > 0) == scan
