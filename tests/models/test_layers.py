import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models.layers import GroupNorm, Style, conv3x3, upsample
from tests.models.conftest import KEY, perturbed


def test_group_norm_agrees_with_flax():
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


def test_a_style_sets_groups_and_the_activation_of_the_embedding():
    x, emb = jax.random.normal(KEY, (2, 4, 4, 8)), jax.random.normal(jax.random.key(1), (2, 6))
    style = Style(groups=4, embedding_activation=None)
    params = perturbed(GroupNorm(), x, emb)
    p = params["params"]
    reference = nn.GroupNorm(num_groups=4, epsilon=1e-5).apply({"params": {k: p[k] for k in ("scale", "bias")}}, x)
    scale, shift = jnp.split(emb @ p["film"]["kernel"] + p["film"]["bias"][None], 2, axis=-1)
    expected = reference * (1 + scale[:, None, None]) + shift[:, None, None]
    np.testing.assert_allclose(GroupNorm(style=style).apply(params, x, emb), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_convolution_of_an_enlarged_picture_agrees_with_the_textbook(dtype):
    """In float64; one that enlarges and then convolves must be no nearer to it."""
    x = jax.random.normal(KEY, (2, 3, 5, 7))
    params = perturbed(conv3x3(4, dtype, None), x)
    kernel, bias = (np.asarray(params["params"][name], np.float64) for name in ("kernel", "bias"))
    large = np.pad(np.asarray(x, np.float64).repeat(2, axis=1).repeat(2, axis=2), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = bias + sum(large[:, i : i + 6, j : j + 10] @ kernel[i, j] for i in range(3) for j in range(3))
    found = conv3x3(4, dtype, None, upsampled=True).apply(params, x)
    assert found.dtype == dtype
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, atol=1e-5 if dtype == jnp.float32 else 0.1)
    error = lambda y: np.sqrt(np.mean((np.asarray(y, np.float64) - expected) ** 2))
    assert error(found) <= 1.1 * error(conv3x3(4, dtype, None).apply(params, upsample(x.astype(dtype))))


def test_convolution_of_an_enlarged_picture_has_the_gradients_of_both_steps():
    x, cotangent = jax.random.normal(KEY, (2, 4, 3, 6)), jax.random.normal(jax.random.key(1), (2, 8, 6, 5))
    params = perturbed(conv3x3(5, jnp.float32, None), x)
    apart = lambda params, x: conv3x3(5, jnp.float32, None).apply(params, upsample(x))
    y, gradients = jax.vjp(apart, params, x)
    found, found_gradients = jax.vjp(conv3x3(5, jnp.float32, None, upsampled=True).apply, params, x)
    np.testing.assert_allclose(found, y, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=3e-5), found_gradients(cotangent), gradients(cotangent)
    )
