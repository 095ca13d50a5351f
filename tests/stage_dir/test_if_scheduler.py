"""Schedulers of diffusers as options of sampling: what is taken over, written back, and refused."""

import dataclasses
import json

import pytest

from imagen_jax.interop import deepfloyd
from imagen_jax.stage_dir import if_pipeline, if_scheduler

SCHEDULER, NOISING = "scheduler/scheduler_config.json", "image_noising_scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({}, {}),
        ({"variance_type": "fixed_small"}, {"ddpm_gamma": 0.0}),
        ({"variance_type": "fixed_large"}, {"ddpm_gamma": 1.0}),
        ({"timestep_spacing": "trailing"}, {"spacing": "trailing", "respacing": None}),
        ({"dynamic_thresholding_ratio": 0.9, "sample_max_value": 2.0}, {"percentile": 0.9, "cap": 2.0}),
        ({"thresholding": False}, {"threshold": "static", "percentile": None, "cap": None}),
        (
            {"thresholding": False, "clip_sample": False},
            {"threshold": "none", "percentile": None, "cap": None},
        ),
    ],
)
def test_what_a_scheduler_says_is_sampled(changes, options, pipeline, change_json, tmp_path, load_model):
    """And what is exported says it again."""
    released = deepfloyd.read_config(pipeline).sampling
    change_json(pipeline / SCHEDULER, **changes)
    found = deepfloyd.read_config(pipeline)
    assert found.sampling == dataclasses.replace(released, **options)
    deepfloyd.export(load_model("stage_1").replace(config=found), tmp_path / "out")
    written, given = (json.loads((place / SCHEDULER).read_text()) for place in (tmp_path / "out", pipeline))
    assert {key: written[key] for key in changes} == changes
    assert all(given[key] == value for key, value in written.items() if key in given)
    assert deepfloyd.read_config(tmp_path / "out").sampling == found.sampling


@pytest.mark.parametrize(
    ("missing", "options"),
    [
        (("variance_type",), {"ddpm_gamma": 0.0}),
        (("dynamic_thresholding_ratio", "sample_max_value"), {"percentile": 0.995, "cap": 1.0}),
        (("thresholding", "clip_sample"), {"threshold": "static", "percentile": None, "cap": None}),
        (("timestep_spacing", "steps_offset", "trained_betas", "clip_sample_range", "num_train_timesteps"), {}),
    ],
)
def test_keys_that_are_missing_are_the_defaults_of_diffusers(missing, options, pipeline, change_json):
    released = deepfloyd.read_config(pipeline).sampling
    change_json(pipeline / SCHEDULER, **dict.fromkeys(missing, ...))
    assert deepfloyd.read_config(pipeline).sampling == dataclasses.replace(released, **options)


def test_without_a_scheduler_a_stage_is_sampled_as_it_was_published(pipeline):
    (pipeline / SCHEDULER).unlink()
    sampling = deepfloyd.read_config(pipeline).sampling
    assert (sampling.percentile, sampling.cap, sampling.ddpm_gamma) == (0.95, 1.5, None)


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        (SCHEDULER, {"_class_name": "DDIMScheduler"}, "_class_name must be 'DDPMScheduler'; got 'DDIMScheduler': give"),
        (SCHEDULER, {"beta_schedule": ...}, "beta_schedule must be 'squaredcos_cap_v2'; got 'linear': give"),
        (SCHEDULER, {"variance_type": "learned"}, "variance_type must be 'learned_range' or 'fixed_small' or .*; got"),
        (SCHEDULER, {"variance_type": []}, r"variance_type must be .*; got \[\]"),
        (SCHEDULER, {"timestep_spacing": "linspace"}, "timestep_spacing must be 'leading' or 'trailing'; got 'linspac"),
        (SCHEDULER, {"steps_offset": 1}, "steps_offset must be 0; got 1"),
        (SCHEDULER, {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr must be False; got True"),
        (SCHEDULER, {"thresholding": "yes"}, "thresholding must be True or False; got 'yes'"),
        (SCHEDULER, {"thresholding": False, "clip_sample_range": 2.0}, "clip_sample_range must be 1; got 2.0"),
        (SCHEDULER, {"prediction_type": "v_prediction"}, "or remove the folder, after which the stage is"),
        (NOISING, {"beta_schedule": "linear"}, "beta_schedule must be 'squaredcos_cap_v2'; got 'linear'"),
    ],
)
def test_schedulers_of_another_process_are_refused(file, changes, message, pipeline, change_json):
    (pipeline / NOISING).parent.mkdir()
    (pipeline / NOISING).write_text((pipeline / SCHEDULER).read_text())
    change_json(pipeline / file, **changes)
    with pytest.raises(ValueError, match=f"{(pipeline / file).as_posix()}: .*{message}"):
        deepfloyd.read_config(pipeline)


def test_an_exported_stage_is_a_pipeline_that_a_folder_may_hold(load_model, tmp_path):
    for name in ("stage_1", "stage_2"):
        deepfloyd.export(load_model(name), tmp_path / name)
        index = json.loads((tmp_path / name / if_pipeline.INDEX).read_text())
        parts = {part for part, value in index.items() if isinstance(value, list) and value[0] == "diffusers"}
        assert parts == {path.name for path in (tmp_path / name).iterdir() if path.is_dir()}
    assert index["_class_name"] == "IFSuperResolutionPipeline"
    assert if_scheduler.read(tmp_path / "stage_2")["cap"] == 1.0
