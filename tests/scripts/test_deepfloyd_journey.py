"""sample.py and train.py as a person runs them on pipelines of DeepFloyd IF of random parameters."""

import shutil

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
    data = write_shapes(tmp_path / "data", train=8)
    common = ["--preset", place, "--data.path", data]
    ran = run_script("embed_text.py", *common)
    assert ran.status == 0, ran.err
    few = ["--run.num-steps", 2, "--run.checkpoint-every", 1, "--run.validate-every", 0, "--run.sample-every", 2]
    few += ["--run.sample-images", 2, "--optim.learning-rate", 1e-3, "--optim.warmup-steps", 1, "--optim.batch-size", 8]
    run = ["--stage", "base", "--workdir", tmp_path / "run", "--init-from", place, "--lora.rank", 2]
    ran = run_script("train.py", *common, *run, *few)
    assert ran.status == 0, ran.err
    (trained,), (original,) = load_cascade(tmp_path / "run"), load_cascade(place)
    before, after = flatten_dict(original.params), flatten_dict(trained.params)
    changed = {path for path, leaf in after.items() if not np.array_equal(leaf, before[path])}
    assert changed and all("attention" in "/".join(path) or "text" in "/".join(path) for path in changed)
    assert (tmp_path / "run/base/samples").is_dir()
    ran = run_script("export.py", "--workdir", tmp_path / "run", "--adapter", "base", "--output", tmp_path / "adapter")
    assert ran.status == 0 and f"for stage base of {place}; sample with --adapter" in ran.err + ran.out, ran.err
    (adapted,) = load_cascade(place, adapters={tmp_path / "adapter": 1.0})
    for path, leaf in flatten_dict(adapted.params).items():
        np.testing.assert_allclose(leaf, after[path], atol=1e-5)


def test_a_pipeline_without_a_language_model_reads_that_of_another(cascade_of_two, tmp_path, run_script, monkeypatch):  # noqa: F811
    """And the picture is made again from what its PNG records."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(cascade_of_two / "I", "alone", ignore=shutil.ignore_patterns("text_encoder", "tokenizer"))
    shutil.copytree(cascade_of_two / "I", "language", ignore=shutil.ignore_patterns("unet"))
    asked = ["sample.py", "--workdir", "alone", "--prompts", "a red circle", *FEW]
    ran = run_script(*asked, "--text-encoder", "./none/such")
    assert ran.status == 2 and "--text-encoder must name the text encoder that stage base was trained with" in ran.err
    assert "or that of a pipeline of DeepFloyd IF with text_encoder and tokenizer" in ran.err
    ran = run_script(*asked, "--text-encoder", "language")
    assert ran.status == 0, ran.err
    file = tmp_path / "alone/samples/a-red-circle-seed0.png"
    assert records.read(file)[0].text_encoder == str(tmp_path / "language")
    shutil.move("language", "moved")
    ran = run_script("sample.py", "--from-png", file, "--text-encoder", "moved", "--output", "again")
    assert ran.status == 0, ran.err
    np.testing.assert_array_equal(records.read(tmp_path / "again" / file.name)[1], records.read(file)[1])

