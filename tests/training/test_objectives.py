"""Objectives by name, also from outside the package."""

import dataclasses
import re

import jax
import numpy as np
import pytest

from imagen_jax import sharding
from imagen_jax.config.validation import validate_for_training
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.training import state as states
from imagen_jax.training.objectives import OBJECTIVES
from imagen_jax.training.step import make_train_step
from tests.conftest import TINY_BERT, write_shapes

# The squared norm of the parameters, which training lowers whatever the data.
OUTSIDE = """
import jax
from imagen_jax.config import OBJECTIVES

@OBJECTIVES.register("small_parameters")
def small_parameters(config):
    def objective(params, batch, draws):
        loss = sum((leaf**2).sum() for leaf in jax.tree.leaves(params))
        return loss, {"mean_pixel": (batch["x"].sum(), 1.0 * batch["x"].size)}

    return objective
"""
PRESET = """
from imagen_jax.config import *

def get_config():
    base = StageConfig(
        image_size=8, network=UNetConfig((8,), (1,), (False,), embedding=32),
        text=TextConfig(encoder={encoder!r}, width=32, length=12), data=DataConfig(path={data!r}),
        optim=OptimConfig(objective="small_parameters", batch_size=8, warmup_steps=0, learning_rate=1e-2),
        run=RunConfig(num_steps=2, log_every=1, validate_every=0, sample_every=0),
    )
    return (base,)
"""


@pytest.fixture
def outside(tmp_path):
    """A file that registers an objective; this process forgets it afterwards."""
    file = tmp_path / "outside.py"
    file.write_text(OUTSIDE)
    yield file
    OBJECTIVES._entries.pop("small_parameters", None)


def with_objective(config, name):
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, objective=name))


@pytest.mark.slow
def test_an_objective_from_outside_trains_from_python(tiny_configs, tiny_batch, outside):
    exec(compile(outside.read_text(), str(outside), "exec"), {"__name__": "outside"})
    config = validate_for_training(with_objective(tiny_configs[1], "small_parameters"))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    step = jax.jit(make_train_step(config, mesh))
    state, found = states.init_state(config, states.abstract_state(config, mesh)), []
    for _ in range(3):
        state, metrics = step(state, tiny_batch)
        found.append(float(metrics["loss"]))
    assert found[0] > found[1] > found[2]
    total, count = metrics["sums"]["mean_pixel"]
    np.testing.assert_allclose(total / count, tiny_batch["x"].mean(), rtol=1e-4)


def test_an_objective_that_learns_from_a_teacher_is_given_one(tiny_configs, tiny_batch):
    config, mesh = with_objective(tiny_configs[1], "moment_matching"), sharding.make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="^teacher must be a Stage with objective 'moment_matching'; got None"):
        make_train_step(config, mesh)(states.abstract_state(config, mesh), tiny_batch)


@pytest.mark.parametrize("field", ["objective", "optimizer"])
def test_an_unknown_name_is_refused_before_training_and_not_when_a_stage_is_loaded(tiny_configs, tmp_path, field):
    optim = dataclasses.replace(tiny_configs[1].optim, **{field: "elsewhere"})
    config = dataclasses.replace(tiny_configs[1], optim=optim)
    with pytest.raises(ValueError, match=f"^optim.{field} must be one of .*(denoising|adamw).*; got 'elsewhere'"):
        validate_for_training(config)
    stage_dir.write_config(tmp_path / "base", config)
    assert stage_dir.read_config(tmp_path / "base") == config


@pytest.mark.slow
def test_an_objective_from_outside_trains_from_the_command_line(tmp_path, outside, monkeypatch, run_script, one_device):
    data = write_shapes(tmp_path / "data", train=8)
    preset = tmp_path / "preset.py"
    preset.write_text(PRESET.format(encoder=str(TINY_BERT), data=str(data)))
    monkeypatch.setenv("IMAGEN_JAX_PLUGINS", str(outside))
    run = lambda *options: run_script("train.py", "--preset", preset, "--stage", "base", *options)

    helped = re.sub(r"[\s│]+", "", run("--help").out)  # lines are broken within a list of names
    (choices,) = re.findall(r"--optim.objective\{(.*?)\}", helped)
    assert {"denoising", "small_parameters"} <= set(choices.split(","))
    wrong = run("--workdir", tmp_path / "run", "--optim.objective", "small_parameter")
    assert wrong.status == 2 and "(did you mean small_parameters?)" in wrong.err
    done = run("--workdir", tmp_path / "run")
    assert done.status == 0, done.err
    assert "mean_pixel" in (tmp_path / "run/base/metrics.jsonl").read_text()
