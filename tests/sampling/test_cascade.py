import dataclasses
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import image_keys, sample_cascade, sample_stage, sharding
from imagen_jax.sampling import one_stage, recipe
from tests.sampling.conftest import KEYS, with_random_params

SEED = 3


@pytest.fixture(scope="module")
def configs_without_attention(tiny_configs):
    """A cascade that compiles sooner, for what is no matter of its networks."""
    base, final = tiny_configs
    return (
        dataclasses.replace(base, network=dataclasses.replace(base.network, attention=(False,))),
        dataclasses.replace(final, network=dataclasses.replace(final.network, self_attention=(False,))),
    )


def sample(stages, text, keys, **options):
    return np.asarray(sample_cascade(stages, text, keys, **options))


@pytest.mark.slow
def test_shape_and_range(tiny_stages, tiny_text):
    base, final = sample_cascade(tiny_stages, tiny_text, image_keys(SEED, 7), return_all=True)
    assert base.shape == (7, 8, 8, 3) and final.shape == (7, 16, 16, 3)
    assert np.isfinite(final).all() and np.abs(final).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "unipc"])
def test_an_image_is_the_same_alone_and_in_a_batch(tiny_stages, tiny_text, sampler):
    keys = image_keys(SEED, 7)
    together = sample(tiny_stages, tiny_text, keys, sampler=sampler)
    for i in (0, 4):
        text, key = jax.tree.map(itemgetter(slice(i, i + 1)), (tiny_text, keys))
        alone = sample(tiny_stages, text, key, sampler=sampler)
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5)


@pytest.mark.slow
def test_an_image_is_the_same_on_one_and_on_eight_devices(tiny_stages, tiny_text):
    assert jax.device_count() == 8
    keys = image_keys(SEED, 7)
    one = sample(tiny_stages, tiny_text, keys)
    mesh = sharding.make_mesh()
    text, spread = sharding.pad_batch((tiny_text, keys), 8, mesh)
    eight = sample_cascade(sharding.replicate(tiny_stages, mesh), text, spread)
    assert len(eight.sharding.device_set) == 8 and eight.addressable_shards[0].data.shape[0] == 1
    np.testing.assert_allclose(np.asarray(eight)[:7], one, atol=1e-5)


@pytest.mark.slow
def test_jit_takes_the_whole_cascade(tiny_stages, tiny_text):
    keys = image_keys(SEED, 7)
    np.testing.assert_allclose(
        jax.jit(sample_cascade)(tiny_stages, tiny_text, keys), sample(tiny_stages, tiny_text, keys), atol=1e-5
    )


def test_compiled_once_for_equal_configurations(tiny_stages, tiny_text):
    from imagen_jax.sampling.one_stage import _sample

    keys = image_keys(SEED, 7)
    sample(tiny_stages, tiny_text, keys)
    before = _sample._cache_size()
    copies = tuple(jax.tree.map(lambda a: a + 1e-3, stage) for stage in tiny_stages)
    assert not np.allclose(sample(copies, tiny_text, keys), sample(tiny_stages, tiny_text, keys))
    assert _sample._cache_size() == before


@pytest.mark.slow
def test_text_key_and_seed_matter(tiny_stages, tiny_text):
    keys = image_keys(SEED, 7)
    first = sample(tiny_stages, tiny_text, keys)
    other_text = tiny_text.replace(embeddings=tiny_text.embeddings[::-1])
    assert np.abs(first - sample(tiny_stages, other_text, keys)).mean() > 1e-3
    assert np.abs(first - sample(tiny_stages, tiny_text, image_keys(SEED + 1, 7))).mean() > 1e-2


@pytest.mark.slow
def test_compiled_once_for_all_scales_levels_and_grids(tiny_stages, tiny_text):
    keys = image_keys(SEED, 7)
    sample(tiny_stages, tiny_text, keys, spacing="t", steps=3)
    before = one_stage._sample._cache_size()
    for options in (
        {"spacing": "rho", "rho": 3.0},
        {"guidance_scale": 2.5, "aug_level": 0.3},
        {"schedule": "linear"},
    ):
        sample(tiny_stages, tiny_text, keys, steps=3, **options)
    assert one_stage._sample._cache_size() == before


def test_wrong_inputs(tiny_stages, tiny_text):
    with pytest.raises(ValueError, match="one row per image; got 7 and 3"):
        sample_cascade(tiny_stages, tiny_text, image_keys(SEED, 3))
    wide = tiny_text.replace(embeddings=jnp.zeros((7, 5, 99)))
    with pytest.raises(ValueError, match="text must have the width 12 .* got 99"):
        sample_cascade(tiny_stages, wide, image_keys(SEED, 7))
    short = tiny_text.replace(mask=tiny_text.mask[:, :3])
    with pytest.raises(ValueError, match=r"a bool mask \[B, L\]; got float32 \(7, 5, 12\) and bool \(7, 3\)"):
        sample_cascade(tiny_stages, short, image_keys(SEED, 7))
    with pytest.raises(ValueError, match=r"keys must be \[B\], one for each image"):
        sample_cascade(tiny_stages, tiny_text, jax.random.key(0))
    with pytest.raises(ValueError, match="low_res must be given to the super-resolution stage sr16"):
        sample_stage(tiny_stages[1], tiny_text, image_keys(SEED, 7))
    with pytest.raises(ValueError, match="low_res must be None for the base stage"):
        sample_stage(tiny_stages[0], tiny_text, image_keys(SEED, 7), low_res=jnp.zeros((7, 4, 4, 3)))


# --- parts of a cascade ---------------------------------------------------------------------------


def test_start_and_stop_at_any_stage(tiny_stages, tiny_text):
    base, final = sample_cascade(tiny_stages, tiny_text, KEYS, return_all=True)
    only_base = sample_cascade(tiny_stages, tiny_text, KEYS, stop="base")
    np.testing.assert_array_equal(only_base, base)
    rest = sample_cascade(tiny_stages, tiny_text, KEYS, start="sr16", low_res=base)
    np.testing.assert_array_equal(rest, final)


@pytest.mark.slow
def test_other_shapes_keep_their_share_at_every_stage(tiny_stages, tiny_text):
    base, final = sample_cascade(tiny_stages, tiny_text, KEYS, return_all=True, size=(16, 32))
    assert base.shape == (7, 8, 16, 3) and final.shape == (7, 16, 32, 3)
    wide = sample_stage(tiny_stages[1], tiny_text, KEYS, low_res=base, size=(16, 32))
    np.testing.assert_array_equal(wide, final)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(configs_without_attention, tiny_text, channels):
    configs = [dataclasses.replace(config, image_channels=channels) for config in configs_without_attention]
    stages = tuple(map(with_random_params, configs))
    assert sample_cascade(stages, tiny_text, KEYS, steps=2).shape == (7, 16, 16, channels)


@pytest.mark.slow
def test_every_stage_takes_edm_and_zero_terminal_snr(configs_without_attention, tiny_text):
    for prediction, is_stretched, sampler in (
        ("edm", False, "heun"),
        ("v", True, "unipc"),
        ("x", True, "dpmpp_2m"),
    ):
        stages = []
        for config in configs_without_attention:
            process = dataclasses.replace(
                config.process, prediction=prediction, zero_terminal_snr=is_stretched,
                schedule="lognormal" if prediction == "edm" else "linear",
            )  # fmt: skip
            stages.append(with_random_params(dataclasses.replace(config, process=process)))
        x = sample_cascade(tuple(stages), tiny_text, KEYS, sampler=sampler, spacing="rho", steps=3)
        assert np.isfinite(x).all()
        grid = recipe.logsnr_grid(stages[0].config, stages[0].config.sampling)
        assert bool(jnp.isneginf(grid[0])) == is_stretched
