"""Options of a request: checked before anything is compiled, and each for its stage."""

import dataclasses

import numpy as np
import pytest

from imagen_jax import config as C
from imagen_jax import image_keys, sample_cascade, sample_stage
from imagen_jax.sampling import one_stage
from imagen_jax.sampling.plan import sampling_by_stage

SEED = 3


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
        ({"size": (17, 16)}, r"size must be \(H, W\) in multiples of 2.*got \(17, 16\)"),
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


def test_one_value_for_all_stages_says_nothing_to_those_without_guidance(tiny_stages):
    base, enlarging = tiny_stages
    own = dataclasses.replace(enlarging.config.sampling, guidance_scale=1.0)
    stages = base, enlarging.replace(config=dataclasses.replace(enlarging.config, sampling=own))
    for options in ({"guidance": "apg"}, {"guidance_rescale": 0.5}, {"threshold_at": "both"}, {"guidance_low": 1.0}):
        guided, other = sampling_by_stage(stages, options)
        assert other == own and guided == dataclasses.replace(base.config.sampling, **options)
        with pytest.raises(ValueError, match=r"guidance_scale 1|without guidance"):
            sampling_by_stage(stages, {name: (value, value) for name, value in options.items()})
    # What is guided at scale 1 too is meant for all.
    _, other = sampling_by_stage(stages, {"guidance": "cfg++", "guidance_scale": (0.5, None)})
    assert other.guidance == "cfg++"
