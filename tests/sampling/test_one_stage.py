"""What one stage computes: once for a request what does not change, and never silently what is not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import Stage, image_keys, sample_cascade, stage
from tests.sampling.conftest import KEYS, with_random_params


@pytest.mark.slow
def test_given_noise_takes_the_place_of_that_of_the_keys(tiny_stages, tiny_text):
    noise = jax.random.normal(jax.random.key(0), (7, 8, 8, 3))
    run = lambda keys: sample_cascade(tiny_stages, tiny_text, keys, stop="base", z_1=noise)
    np.testing.assert_array_equal(run(KEYS), run(image_keys(99, 7)))  # ddim draws no more
    assert np.abs(run(KEYS) - sample_cascade(tiny_stages, tiny_text, KEYS, stop="base")).mean() > 0.01
    with pytest.raises(ValueError, match=r"z_1 must be \[7, 8, 8, 3\]"):
        sample_cascade(tiny_stages, tiny_text, KEYS, z_1=noise[:, :4])


# --- what is computed once ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attending(tiny_configs):
    """A super-resolution stage that attends to the text as well."""
    network = dataclasses.replace(tiny_configs[1].network, self_attention=(True,), num_heads=2)
    return with_random_params(dataclasses.replace(tiny_configs[1], network=network))


@pytest.mark.slow
def test_features_of_the_condition_change_nothing(tiny_stages, attending, tiny_text):
    for tiny, size in ((tiny_stages[0], 8), (attending, 16)):
        z_t = jax.random.normal(jax.random.key(0), (7, size, size, 3))
        cond = stage.Cond(tiny_text)
        if tiny.config.is_super_resolution:
            cond = cond.replace(low_res_noised=0.5 * z_t[:, ::-1], aug_logsnr=jnp.linspace(-1, 3, 7))
        logsnr = jnp.linspace(-3, 3, 7)
        denoise = jax.jit(tiny.denoise)
        prepared = jax.jit(tiny.prepare)(cond)
        np.testing.assert_allclose(denoise(z_t, logsnr, prepared), denoise(z_t, logsnr, cond), atol=2e-6)


@pytest.mark.slow
def test_text_and_low_res_are_not_read_again_at_every_step(attending, tiny_text):
    """With the features, nothing depends on the embeddings, the aug level or the low-res image any more."""
    tiny = attending
    z_t = jax.random.normal(jax.random.key(0), (7, 16, 16, 3))
    cond = stage.Cond(tiny_text, low_res_noised=0.3 * z_t, aug_logsnr=jnp.zeros(7))
    prepared = jax.jit(tiny.prepare)(cond)
    denoise = jax.jit(tiny.denoise)
    spoiled = prepared.replace(
        text=prepared.text.replace(embeddings=jnp.full_like(tiny_text.embeddings, jnp.nan)),
        low_res_noised=jnp.full_like(z_t, jnp.nan),
        aug_logsnr=jnp.full((7,), jnp.nan),
    )
    np.testing.assert_array_equal(denoise(z_t, jnp.zeros(7), spoiled), denoise(z_t, jnp.zeros(7), prepared))
    kinds = {
        jax.tree_util.keystr(path).split("'")[-2] for path, _ in jax.tree.leaves_with_path(prepared.features)
    }
    assert kinds == {"text", "condition", "text_key_value", "images"}


# --- broken networks ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("threshold", ["none", "static", "dynamic"])
def test_nan_and_infinity_are_named_with_stage_and_step(tiny_stages, tiny_text, threshold):
    for value in (np.nan, np.inf):
        spoiled = jax.tree.map(lambda leaf: leaf, tiny_stages[1].params)
        spoiled["conv_out"]["bias"] = spoiled["conv_out"]["bias"].at[1].set(value)
        stages = (tiny_stages[0], Stage(spoiled, tiny_stages[1].config))
        with pytest.raises(
            FloatingPointError, match="stage sr16: .*NaN or infinity at step 1, in 7 of 7 images"
        ):
            sample_cascade(stages, tiny_text, KEYS, threshold=threshold)
    run = jax.jit(lambda stages: sample_cascade(stages, tiny_text, KEYS, threshold=threshold))
    assert np.isnan(run(stages)).all()  # inside jit nothing can be raised, but nothing is hidden
