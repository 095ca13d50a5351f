"""Options of sampling follow from the registered methods, also of those from outside the package."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest

from imagen_jax import config as C
from imagen_jax import image_keys, sample_cascade, sample_stage
from imagen_jax.cli import parsing, sample
from imagen_jax.config.validation import validate_sampling
from imagen_jax.diffusion import samplers
from tests.methods import OPTIONS, Eager, Flat, Tight


def test_methods_from_outside_have_options_everywhere(outside, tmp_path):
    sampling = C.SamplingConfig(**OPTIONS)
    assert (sampling.eager_gain, sampling.bound, sampling.eta) == (0.3, 0.2, None)
    assert sampling.method("sampler") == Eager(0.3) and sampling.method("threshold") == Tight(0.2)
    validate_sampling(C.StageConfig(), sampling)
    assert C.from_dict(json.loads(json.dumps(C.to_dict(sampling))), C.SamplingConfig) == sampling
    words = [word for name, value in OPTIONS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    parsed = parsing.parse(sample.Options, "", ["--workdir", str(tmp_path), *words])
    assert parsed.sampling() == OPTIONS
    with pytest.raises(ValueError, match=r"eager_gain must be in \[0, 1\]; got 3.0"):
        validate_sampling(C.StageConfig(), dataclasses.replace(sampling, eager_gain=3.0))
    with pytest.raises(ValueError, match="since sampler 'ddim' does not use it .only 'mine' does"):
        validate_sampling(C.StageConfig(), dataclasses.replace(sampling, sampler="ddim"))


@pytest.mark.slow
def test_methods_from_outside_sample_a_cascade(outside, tiny_stages, tiny_text):
    """By name and as instances, which need no name; the estimate is in the threshold's bound."""
    keys, stages = image_keys(0, 7), tiny_stages[:1]
    named = sample_cascade(stages, tiny_text, keys, **OPTIONS)
    instances = {"sampler": Eager(0.3), "guidance": Flat(0.5), "threshold": Tight(0.2)}
    given = sample_cascade(stages, tiny_text, keys, **instances, steps=2, guidance_scale=2.0)
    np.testing.assert_array_equal(given, named)
    sampling = C.SamplingConfig(**instances, steps=2, guidance_scale=2.0)
    _, info = sample_stage(
        stages[0], tiny_text, keys, sampling=sampling, return_info=True, trajectory=True
    )
    assert 0.19 < np.abs(info.x_hats).max() <= 0.2 + 1e-6


def test_a_config_is_a_value():
    sampling = C.SamplingConfig(sampler="ddpm", ddpm_gamma=0.3)
    assert copy.deepcopy(sampling) == sampling == pickle.loads(pickle.dumps(sampling))
    assert hash(sampling) == hash(C.SamplingConfig(ddpm_gamma=0.3, sampler="ddpm"))
    assert dataclasses.replace(sampling, ddpm_gamma=None) == C.SamplingConfig(sampler="ddpm")
    with pytest.raises(ValueError, match="sampling options must be among .*; got stepz"):
        C.SamplingConfig(stepz=3)
    with pytest.raises(AttributeError, match="no option 'stepz'"):
        sampling.stepz  # noqa: B018


def test_former_files_load():
    """Until now every option was a key, null where it was not given; before that unused ones had values."""
    sampling = C.SamplingConfig(sampler="ddpm", ddpm_gamma=0.3)
    assert C.from_dict(dict.fromkeys(C.flat_options()) | C.to_dict(sampling), C.SamplingConfig) == sampling
    first = {"sampler": "ddpm", "steps": 9, "ddpm_gamma": 0.3, "eta": 0.0, "percentile": 0.995, "threshold": "static"}
    expected = C.SamplingConfig(sampler="ddpm", steps=9, ddpm_gamma=0.3, threshold="static")
    assert C.from_dict(first, C.SamplingConfig) == expected


def test_an_unregistered_instance_has_no_file():
    with pytest.raises(ValueError, match="sampler must be a registered sampler"):
        C.to_dict(C.SamplingConfig(sampler=Eager()))
    assert C.to_dict(C.SamplingConfig(sampler=samplers.DDIM(0.5)))["eta"] == 0.5
