import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.models.attention import AttentionPool, TextAttention
from imagen_jax.models.layers import GroupNorm
from imagen_jax.structs import TextCond
from tests.models.conftest import KEY, perturbed, text_cond


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
