import dataclasses
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import config as C
from imagen_jax import image_keys, sample_cascade, sample_stage, sharding
from imagen_jax.sampling import one_stage
from imagen_jax.sampling.plan import sampling_by_stage

SEED = 3


def sample(stages, text, keys, **options):
    return np.asarray(sample_cascade(stages, text, keys, **options))


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
def test_options_reach_their_stage(tiny_stages, tiny_text):
    keys = image_keys(SEED, 7)
    base = tiny_stages[0]
    small, _ = sample_cascade(tiny_stages, tiny_text, keys, return_all=True, guidance_scale=(5.0, 1.0))
    sampling = dataclasses.replace(base.config.sampling, guidance_scale=5.0)
    np.testing.assert_allclose(small, sample_stage(base, tiny_text, keys, sampling=sampling), atol=1e-6)
    again, _ = sample_cascade(
        tiny_stages, tiny_text, keys, return_all=True, guidance_scale=(5.0, 4.0), aug_level=0.3
    )
    np.testing.assert_array_equal(small, again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stepz": 3}, "must be among .*; got stepz"),
        ({"steps": (1, 2, 3)}, "one for each of the 2 stages; got 3"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"sampler": "euler"}, "sampler must be one of .*got 'euler'"),
        ({"aug_level": 1.5}, r"aug_level must be in \[0, 1.0\]"),
        ({"steps": 10**9}, "steps must be at most 10000; got 1000000000"),
        ({"steps": 1e9}, "steps must be a whole number from 1 to 10000; got 1000000000.0"),
        ({"percentile": 99.5}, r"percentile must be in \(0, 1\]; got 99.5"),
        ({"percentile": 0.0}, r"percentile must be in \(0, 1\]; got 0.0"),
        ({"percentile": 0.9, "threshold": "static"}, "left out, since threshold 'static' does not use it"),
        ({"eta": 0.5, "sampler": "dpmpp_2m"}, "left out, since sampler 'dpmpp_2m' does not use it"),
        ({"ddpm_gamma": 0.5}, r"left out, since sampler 'ddim' does not use it \(only 'ddpm' does\)"),
        ({"order": 2, "sampler": ("unipc", "ddim")}, "order must be left out"),
        ({"churn_noise": 1.1, "sampler": "heun"}, "churn_noise must be left out without churn"),
        (
            {"churn": 4.0, "sampler": "heun", "guidance_low": 1.0},
            "guidance_low must be left out with churn",
        ),
        ({"steps": 2.5}, "steps must be a whole number from 1 to 10000; got 2.5"),
        ({"steps": True}, "steps must be a whole number from 1 to 10000; got True"),
        ({"guidance_low": np.nan}, "guidance_low must be a finite number; got nan"),
        ({"guidance_scale": "high"}, "guidance_scale must be a finite number; got 'high'"),
        ({"guidance": "apg", "guidance_scale": 1.0}, r"guidance must be 'cfg' with guidance_scale 1 \(off\)"),
        ({"steps": (4, 2000), "spacing": (None, "trailing")}, "steps must be at most 1000"),
        ({"floor": (1.0, np.inf)}, "floor must be a finite number"),
        ({"order": 4, "sampler": "unipc"}, "order must be at most 3; got 4"),
        ({"churn": 10.0}, "churn must be left out"),
        ({"rho": 3.0}, "rho must be left out, since spacing 't'"),
        ({"sigma_min": 3.0, "sigma_max": 1.0, "spacing": "rho"}, "sigma_min must be positive and below sigma_max"),
        (
            {"sigma_max": 1e-3, "spacing": "rho"},
            "sigma_min must be positive and below sigma_max; got 0.002 and 0.001",
        ),
        ({"sampler": (None, "heun"), "churn": (None, 9.0), "churn_min": (None, 99.0)}, "got 99.0 and 50.0"),
        ({"schedule": "quadratic"}, "schedule must be one of cosine, .*got 'quadratic'"),
        ({"apg_norm": 3.0}, "apg_norm must be left out, since guidance 'cfg'"),
        ({"guidance": "cfg++"}, r"guidance_scale must be in \(0, 1\]; got 3.0: guidance 'cfg\+\+'"),
        ({"guidance": "cfg++", "guidance_scale": 0.5, "sampler": "dpmpp_2m"}, "sampler must be 'ddim'"),
        ({"guidance_scale": 1.0, "guidance_rescale": 0.5}, "guidance_rescale must be left out, since guid"),
        ({"guidance_min_logsnr": 3.0, "guidance_max_logsnr": 1.0}, "must be below guidance_max_logsnr 1.0"),
        ({"guidance_low_start": 3}, "guidance_low_start must be left out without guidance_low"),
        ({"cap": 0.5}, "cap must be at least floor"),
        ({"strength": 0.0}, r"strength must be in \(0, 1\]; got 0.0"),
        ({"strength": 0.5}, "strength must be 1 without an image; got 0.5"),
        ({"resample": 2}, "resample must be 1 without a mask; got 2"),
        ({"jump": 2}, "jump must be 1 unless resample is more than 1"),
        ({"aug_level": (0.2, 0.2)}, "aug_level must be left out .* for stage base"),
        ({"start": "sr32"}, "start must be a stage, one of base, sr16; got 'sr32'"),
        ({"start": "sr16", "stop": "base"}, "start must not come after stop"),
        ({"size": (18, 16)}, r"size must be \(H, W\) in multiples of 4.*got \(18, 16\)"),
    ],
)
def test_wrong_options(tiny_stages, tiny_text, options, message, monkeypatch):
    monkeypatch.setattr(one_stage, "_sample", lambda *_, **__: pytest.fail("a stage was sampled"))
    with pytest.raises(ValueError, match=message):
        sample_cascade(tiny_stages, tiny_text, image_keys(SEED, 7), **options)


def test_an_option_of_another_method_goes_with_it(tiny_stages, tiny_text):
    """A preset's own options do not stand in the way of another method; numpy's scalars are numbers."""
    preset = dataclasses.replace(
        tiny_stages[0].config.sampling, sampler="ddpm", ddpm_gamma=0.3, guidance_rescale=0.5, percentile=0.9,
        threshold_at="both",
    )  # fmt: skip
    stages = (tiny_stages[0].replace(config=dataclasses.replace(tiny_stages[0].config, sampling=preset)),)
    [changed] = sampling_by_stage(
        stages, {"sampler": "ddim", "threshold": "none", "guidance_scale": np.float32(1)}
    )
    assert changed == C.SamplingConfig(steps=4, sampler="ddim", threshold="none", guidance_scale=1.0)
    [changed] = sampling_by_stage(stages, {"guidance": "cfg++", "guidance_scale": 0.5, "sampler": "ddim"})
    assert changed.guidance_rescale is None and changed.percentile == 0.9
    [kept] = sampling_by_stage(stages, {"steps": np.array([7])})
    assert kept == dataclasses.replace(preset, steps=7)


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
