"""sample.py and train.py as a person runs them on pipelines of DeepFloyd IF of random parameters."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from PIL import Image

from imagen_jax import load_cascade
from imagen_jax.generate import records
from tests.conftest import write_shapes
from tests.deepfloyd_models import cascade_of_two, goldens  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_once")]

FEW = ["--steps", "2", "--sampler", "ddim", "--spacing", "t"]
PRESET = """
import dataclasses
from imagen_jax.config import OptimConfig, RunConfig
from imagen_jax.stage_dir.if_pipeline import read_config

def get_config():
    config = read_config({place!r})
    optim = OptimConfig(learning_rate=1e-3, warmup_steps=1, batch_size=8)
    run = RunConfig(num_steps=2, checkpoint_every=1, validate_every=0, sample_every=2, sample_images=2)
    return (dataclasses.replace(config, optim=optim, run=run),)
"""


def test_pictures_of_two_pipelines(cascade_of_two, tmp_path, run_script, monkeypatch):  # noqa: F811
    """A caption to 32 pixels, the same again from its PNG, and a picture enlarged by stage II."""
    monkeypatch.chdir(tmp_path)
    places = [cascade_of_two / "I", cascade_of_two / "II"]
    ran = run_script("sample.py", "--workdir", *places, "--prompts", "A red circle!", *FEW)
    assert ran.status == 0, ran.err
    file = tmp_path / "samples/a-red-circle-seed0.png"
    record, pixels = records.read(file)
    assert record.workdir == tuple(map(str, places)) and pixels.shape == (32, 32, 3)
    assert all(len(sha256) == 64 for sha256 in record.checkpoints.values())
    ran = run_script("sample.py", "--from-png", file, "--output", "again")
    assert ran.status == 0, ran.err
    np.testing.assert_array_equal(records.read(tmp_path / "again" / file.name)[1], pixels)
    small = ["--start", "sr32", "--low-res", file, "--output", "large"]
    ran = run_script("sample.py", "--workdir", cascade_of_two, "--prompts", "a red circle", *small, *FEW)
    assert ran.status == 0, ran.err
    assert Image.open(tmp_path / "large/a-red-circle-seed0.png").size == (32, 32)


def test_adapters_of_a_pipeline_are_trained(cascade_of_two, tmp_path, run_script):  # noqa: F811
    """With captions embedded before, the empty one among them, from the weights of the pipeline."""
    place = str(cascade_of_two / "I")
    (tmp_path / "preset.py").write_text(PRESET.format(place=place))
    data = write_shapes(tmp_path / "data", train=8)
    common = ["--preset", tmp_path / "preset.py", "--data.path", data]
    ran = run_script("embed_text.py", *common)
    assert ran.status == 0, ran.err
    ran = run_script(
        "train.py", *common, "--stage", "base", "--workdir", tmp_path / "run", "--init-from", place, "--lora.rank", 2
    )
    assert ran.status == 0, ran.err
    (trained,), (original,) = load_cascade(tmp_path / "run"), load_cascade(place)
    before, after = flatten_dict(original.params), flatten_dict(trained.params)
    changed = {path for path, leaf in after.items() if not np.array_equal(leaf, before[path])}
    assert changed and all("attention" in "/".join(path) or "text" in "/".join(path) for path in changed)
    assert (tmp_path / "run/base/samples").is_dir()

