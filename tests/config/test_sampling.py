"""Options of sampling follow from the registered methods, also of those from outside the package."""

import copy
import dataclasses
import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import config as C
from imagen_jax import image_keys, sample_cascade, sample_stage
from imagen_jax.cli import parsing, sample
from imagen_jax.config.validation import validate_sampling
from imagen_jax.diffusion import denoisers, guidance, samplers, schedules, thresholds
from imagen_jax.methods import option


@dataclasses.dataclass(frozen=True)
class Eager(samplers.Sampler):
    """Goes a share of the way to x_hat in each step."""

    gain: float = option(0.5, "[0, 1]", flat="eager_gain")
    """share of the way."""

    def step(self, s, carry):
        return s.z_t + self.gain * (s.x_hat - s.z_t), carry


@dataclasses.dataclass(frozen=True)
class Flat(guidance.Rule):
    """Linear guidance whose result is scaled."""

    flat_share: float = option(1.0, "(0, 1]")
    """factor on the result."""

    def combine(self, x_cond, x_null, w, state):
        return self.flat_share * (x_null + w * (x_cond - x_null)), state


@dataclasses.dataclass(frozen=True)
class Tight(thresholds.Threshold):
    """Clips to a bound."""

    bound: float = option(0.25, "(0, 1]")
    """the bound."""

    def __call__(self, x_hat):
        return jnp.clip(x_hat, -self.bound, self.bound)


@pytest.fixture
def outside(monkeypatch):
    """The three methods, registered as "mine" for the time of a test."""
    methods = ((samplers.SAMPLERS, Eager), (guidance.RULES, Flat), (thresholds.THRESHOLDS, Tight))
    for registry, cls in methods:
        monkeypatch.setattr(registry, "_entries", dict(registry))
        registry.register("mine")(cls)


OPTIONS = {
    "sampler": "mine", "eager_gain": 0.3, "guidance": "mine", "flat_share": 0.5, "threshold": "mine", "bound": 0.2,
    "steps": 2, "guidance_scale": 2.0,
}  # fmt: skip


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


def test_help_describes_methods_from_outside(outside, capsys):
    with pytest.raises(SystemExit):
        parsing.parse(sample.Options, "", ["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "unipc|mine" in text
    assert "--eager-gain FLOAT [...] mine: share of the way. (default: the stage's own, else 0.5)" in text


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


def test_options_of_two_kinds_have_names_of_their_own(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Clash(Eager):
        percentile: float = 0.5

    monkeypatch.setattr(samplers.SAMPLERS, "_entries", dict(samplers.SAMPLERS) | {"clash": Clash})
    with pytest.raises(ValueError, match="option percentile of mine|option percentile of dynamic must have a name"):
        C.flat_options()


def test_guidance_passes_the_variance_of_the_conditional_estimate_on():
    z, cond, null = jnp.ones((2, 1, 1, 1)), jnp.array([1.0, 2.0]), jnp.zeros(2)
    column = lambda value: value[:, None, None, None]
    estimate = lambda z_t, logsnr_t, cond: denoisers.Estimate(z_t * column(cond), log_variance=z_t * column(cond) / 4)
    guided = guidance.classifier_free(estimate, cond, null, 3.0)
    out = denoisers.then(guided, lambda x: x + 1)(z, jnp.zeros(2))
    np.testing.assert_allclose(out.x.ravel(), 3 * cond + 1)
    np.testing.assert_allclose(out.log_variance.ravel(), cond / 4)
    assert out.noise_x is None
    x = samplers.sample(guided, z, schedules.grid(schedules.make("cosine"), 2), sampler="ddim")
    assert np.isfinite(x).all()
