import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.models.attention import AttentionPool, TextAttention, attend
from imagen_jax.models.layers import GroupNorm, Style
from imagen_jax.structs import TextCond
from tests.models.conftest import KEY, perturbed, text_cond


@pytest.mark.slow
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


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
def test_attention_and_its_gradients_are_those_of_jax(dtype, tolerance):
    query, key, value, weight = (
        jax.random.normal(jax.random.fold_in(KEY, i), (2, rows, 3, 8), dtype) for i, rows in enumerate((6, 5, 5, 6))
    )
    mask = jnp.array([[True] * 5, [True, False, True, False, False]])

    def results(function):
        out, gradients = jax.vjp(function, query, key, value)
        assert out.dtype == dtype
        return jax.tree.map(np.float32, (out, *gradients(weight)))

    expected = results(lambda *args: jax.nn.dot_product_attention(*args, mask=mask[:, None, None, :]))
    for got, right in zip(results(lambda *args: attend(*args, mask)), expected, strict=True):
        np.testing.assert_allclose(got, right, rtol=0, atol=tolerance * np.abs(right).max())


def test_pooling_agrees_with_the_textbook():
    """Keys and values of the mean and of all tokens, masked text left out, in float64."""
    text = text_cond()
    module = AttentionPool(features=16, head_dim=6, num_heads=2)
    variables = perturbed(module, text)
    p = jax.tree.map(np.float64, variables["params"])
    dense = lambda name, h: h @ p[name]["kernel"] + p[name]["bias"]
    expected = np.zeros((2, 12))
    for b in range(2):
        tokens = np.float64(text.embeddings[b])[np.asarray(text.mask[b])]
        tokens = (tokens - tokens.mean(-1, keepdims=True)) / np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
        tokens = tokens * p["norm"]["scale"] + p["norm"]["bias"]
        mean = tokens.mean(0)
        tokens = np.concatenate([mean[None], tokens])
        for head in (slice(0, 6), slice(6, 12)):
            logits = dense("key", tokens)[:, head] @ dense("query", mean)[head] / 6**0.5
            weight = np.exp(logits) / np.exp(logits).sum()
            expected[b, head] = weight @ dense("value", tokens)[:, head]
    np.testing.assert_allclose(module.apply(variables, text), dense("out", expected), rtol=1e-4, atol=1e-5)


def test_pooling_ignores_the_order_of_tokens():
    text = text_cond()
    module = AttentionPool(features=16, head_dim=8)
    params = perturbed(module, text)
    order = jnp.array([2, 0, 1, 4, 3])  # keeps each row's padding at its end
    shuffled = TextCond(text.embeddings[:, order], text.mask[:, order])
    np.testing.assert_allclose(module.apply(params, text), module.apply(params, shuffled), atol=1e-5)


def test_a_style_norms_the_text_over_all_tokens():
    text = text_cond(width=8)
    module = TextAttention(num_heads=2, head_dim=4, style=Style(groups=4, text_groups=2))
    x = jax.random.normal(KEY, (2, 2, 3, 8))
    params = perturbed(module, x, text)
    p, tokens = params["params"]["text_norm"], np.float64(text.embeddings).reshape(2, 5, 2, 4)
    tokens = (tokens - tokens.mean((1, 3), keepdims=True)) / np.sqrt(tokens.var((1, 3), keepdims=True) + 1e-5)
    expected = tokens.reshape(2, 5, 8) * np.float64(p["scale"]) + np.float64(p["bias"])
    _, state = module.apply(params, x, text, capture_intermediates=True)
    (normed,) = state["intermediates"]["text_norm"]["__call__"]
    np.testing.assert_allclose(normed[:, :, 0], expected, rtol=1e-4, atol=1e-5)


def test_pooling_by_a_style_adds_a_position_to_the_mean_token():
    text = text_cond()
    module = AttentionPool(features=16, head_dim=6, num_heads=2, has_position=True)
    params = perturbed(module, text)
    assert params["params"]["position"].shape == (1, 12) and params["params"]["query"]["kernel"].shape == (12, 12)
    zero = {"params": params["params"] | {"position": jnp.zeros((1, 12))}}
    without = {"params": {k: v for k, v in params["params"].items() if k != "position"}}
    plain = AttentionPool(features=16, head_dim=6, num_heads=2).apply(without, text)
    np.testing.assert_allclose(module.apply(zero, text), plain, atol=1e-6)
    assert np.abs(module.apply(params, text) - plain).max() > 1e-3
