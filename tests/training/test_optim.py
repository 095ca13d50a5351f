import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from imagen_jax.config import OptimConfig
from imagen_jax.training import optim


def test_learning_rate_warms_up_and_decays():
    rate = optim.learning_rate(OptimConfig(learning_rate=2.0, warmup_steps=10, decay_steps=110))
    np.testing.assert_allclose(
        [rate(0), rate(4), rate(9), rate(60), rate(110)], [0.2, 1.0, 2.0, 1.0, 0.0], atol=1e-5
    )
    constant = optim.learning_rate(OptimConfig(learning_rate=2.0, warmup_steps=10))
    np.testing.assert_allclose(constant(10**6), 2.0)


def test_clipping_bounds_the_update_and_decay_spares_biases():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    grads = jax.tree.map(lambda p: 1e6 * p, params)
    clip = optim.make_optimizer(OptimConfig(clip_norm=1.0))
    unscaled, _ = optax.clip_by_global_norm(1.0).update(grads, optax.EmptyState())
    assert optax.global_norm(unscaled) < 1.0001
    state = clip.init(params)
    assert np.isfinite(jax.tree.leaves(clip.update(grads, state, params)[0])[0]).all()
    decay = optim.make_optimizer(
        OptimConfig(weight_decay=0.1, learning_rate=1.0, warmup_steps=1, clip_norm=0.0)
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = decay.update(zeros, decay.init(params), params)
    assert (updates["kernel"] < 0).all() and not updates["bias"].any()


@pytest.mark.slow
def test_muon_steps_by_orthogonal_matrices_of_the_size_of_adam():
    rng = np.random.default_rng(0)
    params = {
        "conv_in": {"kernel": jnp.ones((3, 3, 2, 16))},
        "block": {"kernel": jnp.ones((3, 3, 8, 16)), "bias": jnp.ones(16)},
        "dense": {"kernel": jnp.ones((24, 16))},
    }
    grads = jax.tree.map(lambda p: jnp.asarray(rng.standard_normal(p.shape), jnp.float32), params)
    muon = optim.make_optimizer(
        OptimConfig(optimizer="muon", learning_rate=1.0, warmup_steps=1, clip_norm=0.0)
    )
    updates, state = muon.update(grads, muon.init(params), params)
    for matrix in (updates["block"]["kernel"].reshape(-1, 16), updates["dense"]["kernel"]):
        # Five Newton-Schulz steps bring the singular values to 1 within about a third (Jordan et al. 2024).
        singular = np.linalg.svd(matrix, compute_uv=False) / (0.2 * np.sqrt(max(matrix.shape)))
        assert singular.min() > 0.6 and singular.max() < 1.3
        np.testing.assert_allclose(np.sqrt(np.mean(matrix**2)), 0.2, rtol=0.2)
    for part in (updates["conv_in"]["kernel"], updates["block"]["bias"]):  # the first step of Adam: signs
        np.testing.assert_allclose(np.abs(part), np.abs(part).max(), rtol=1e-3)
    assert jax.tree.map(jnp.shape, muon.update(grads, state, params)[0]) == jax.tree.map(jnp.shape, params)

    decay = optim.make_optimizer(OptimConfig(optimizer="muon", weight_decay=0.1, warmup_steps=1))
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = decay.update(zeros, decay.init(params), params)
    assert (updates["block"]["kernel"] < 0).all() and not updates["block"]["bias"].any()
