import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.models.layers import GroupNorm, Style
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
