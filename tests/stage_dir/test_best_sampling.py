"""Sampling options that were changed by hand are told."""

import json
import logging

import pytest

from imagen_jax import load_cascade, load_stage

# What tensorstore's threads find closed, once the first array has failed (scripts do not print it).
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.slow
def test_changed_sampling_options_are_told(workdir, caplog):
    """In config.json they may be meant; in sampling.json they have a checksum."""
    file = workdir / "base/config.json"
    content = json.loads(file.read_text())
    content["sampling"]["guidance_scale"] = 7.0
    file.write_text(json.dumps(content))
    caplog.set_level(logging.INFO)
    assert load_stage(workdir / "base").config.sampling.guidance_scale == 7
    assert "sampling.guidance_scale: 5.0 -> 7.0" in caplog.text
    file = workdir / "sampling.json"
    content = json.loads(file.read_text())
    content["stages"]["base"]["steps"] = 8
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="as imagen-jax sweep stored them; got others: remove the line"):
        load_cascade(workdir, best=True)
    file.write_text(json.dumps({"stages": content["stages"]}))
    assert load_cascade(workdir, best=True)[0].config.sampling.steps == 8
