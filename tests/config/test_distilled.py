"""Distilled stages: sampled as they were made for, and nothing else."""

import dataclasses

import jax
import pytest

from imagen_jax import Stage, image_keys
from imagen_jax import config as C
from imagen_jax.config import distilled
from imagen_jax.config.validation import validate, validate_for_training, validate_sampling
from imagen_jax.diffusion import samplers
from imagen_jax.sampling.plan import plan_cascade
from imagen_jax.training import step  # noqa: F401  registers objectives and optimisers


@pytest.fixture
def config(tiny_configs):
    """A base of four steps, whose preset samples otherwise."""
    sampling = C.SamplingConfig(
        sampler="unipc", order=2, steps=16, guidance_scale=3.0, guidance_rescale=0.5, threshold="static", spacing="rho",
        final_logsnr=1.0,
    )  # fmt: skip
    made = C.DistilledConfig(steps=4, guidance_scale=3.0)
    optim = dataclasses.replace(tiny_configs[0].optim, objective="progressive", teacher="runs/base")
    return dataclasses.replace(tiny_configs[0], sampling=sampling, distilled=made, optim=optim)


def test_training_takes_the_sampling_options_that_fit(config, tiny_configs):
    found = validate_for_training(config)
    expected = C.SamplingConfig(sampler="ddim", steps=4, guidance_scale=1.0, threshold="static")
    assert found == dataclasses.replace(config, sampling=expected)
    assert distilled.with_sampling(tiny_configs[0]) is tiny_configs[0]
    with pytest.raises(ValueError, match=r"^sampling.guidance_scale must be 1 \(off\) for stage base, which is dist"):
        validate(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_scale": 7.0}, r"guidance_scale must be 1 \(off\) for WHAT; got 7.0: leave it out."),
        ({"steps": 8}, "steps must be 4 for WHAT; got 8: leave it out."),
        ({"steps": 2}, "steps must be 4 for WHAT; got 2"),
        ({"sampler": "heun"}, "sampler must be 'ddim' for WHAT; got 'heun'"),
        ({"sampler": samplers.DDIM(eta=0.5)}, "sampler must be 'ddim' for WHAT"),
        ({"eta": 0.5}, "eta must be 0 for WHAT; got 0.5"),
        ({"spacing": "rho"}, "spacing must be 't' for WHAT"),
        ({"guidance": "cfg++"}, "guidance must be 'cfg' for WHAT"),
        ({"schedule": "linear"}, "schedule must be None, the one of training, for WHAT; got 'linear'"),
        ({"final_logsnr": 0.0}, r"final_logsnr must be 20 \(off\) for WHAT; got 0.0"),
        ({"sampler": samplers.DDIM(final_logsnr=0.0)}, "sampler must be 'ddim' for WHAT"),
        ({"strength": 0.3}, "strength must be a multiple of 1/4 for WHAT; got 0.3"),
    ],
)
def test_other_options_are_refused_and_say_what_the_stage_does(config, options, message):
    config = validate_for_training(config)
    what = "stage base, which is distilled to 4 unguided steps from a teacher with guidance_scale 3"
    with pytest.raises(ValueError, match=f"^{message.replace('WHAT', what)}"):
        validate_sampling(config, C.override(config.sampling, options))


def test_options_that_change_nothing_are_taken(config):
    config = validate_for_training(config)
    same = {"sampler": samplers.DDIM()}, {"strength": 0.75}, {"steps": 4}, {"threshold": "dynamic"}
    for options in (*same, {"final_logsnr": 20.0}):
        validate_sampling(config, C.override(config.sampling, options))


def test_a_negative_prompt_needs_a_guided_stage(config, tiny_configs, tiny_text):
    keys, few = image_keys(0, 7), validate_for_training(config)
    base, sr = Stage(None, few), Stage(None, tiny_configs[1])
    plan = lambda *stages, **options: plan_cascade(stages, tiny_text, keys, may_be_shapes=True, **options)
    negative = jax.tree.map(lambda leaf: leaf[:1], tiny_text)
    for options in ({"negative": negative}, {"negative": negative, "steps": 4}):
        with pytest.raises(ValueError, match="^negative must be left out for stage base, which is distilled to 4"):
            plan(base, **options)
    unguided = {"negative": negative, "guidance_scale": 1.0}
    with pytest.raises(ValueError, match="^negative must be left out for stage base, which is distilled to 4"):
        plan(base, sr, **unguided)
    made = plan(base, sr, negative=negative)
    assert made.inputs[0].negative is None and made.inputs[1].negative is not None


UNDISTILLED = {"distilled.steps": 0, "distilled.guidance_scale": None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim.teacher": ""}, "optim.teacher must be given with objective 'progressive', which learns from"),
        ({"distilled.steps": 0}, "distilled.steps must be given with objective 'progressive'"),
        ({"distilled.steps": -1}, "distilled.steps must be at least 0; got -1"),
        ({"distilled.substeps": 0}, "distilled.substeps must be at least 1; got 0"),
        (
            {"optim.objective": "moment_matching", "lora.rank": 2},
            "lora.rank must be 0 with objective 'moment_matching', which trains all parameters of a second network",
        ),
        ({"distilled.steps": 9999}, "distilled.substeps must be at most 1 with 9999 steps; got 2"),
        ({"optim.objective": "denoising"}, "optim.teacher must be left out with objective 'denoising'"),
        (
            {"optim.objective": "denoising", "optim.teacher": "", "distilled.steps": 0, "distilled.substeps": 3},
            "distilled.substeps must be left out with objective 'denoising', which does not learn from a .*; got 3",
        ),
        (
            {"optim.objective": "preservation"},
            "distilled.steps must be left out with objective 'preservation', which does not distil",
        ),
        (
            {"optim.objective": "preservation"} | UNDISTILLED,
            "data.prior_path must be given with objective 'preservation', which preserves what the teacher makes",
        ),
        (
            {"optim.objective": "preservation", "optim.teacher": ""} | UNDISTILLED,
            "optim.teacher must be given with objective 'preservation'",
        ),
        ({"process.prediction": "eps"}, "process.prediction must not be 'eps' in a distilled stage"),
        ({"process.times": "logit_normal"}, "process.times must be 'uniform' with a teacher"),
    ],
)  # fmt: skip
def test_what_cannot_be_distilled_is_one_line(config, changes, message):
    for path, value in changes.items():
        part, _, name = path.partition(".")
        config = dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **{name: value})})
    with pytest.raises(ValueError, match=f"^{message}"):
        validate_for_training(config)
