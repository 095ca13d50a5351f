"""What was written before config.json had a version still loads, samples and trains."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from imagen_jax import TextEncoder, image_keys, load_cascade, sample_cascade
from imagen_jax.config import SamplingConfig
from imagen_jax.config.serialization import VERSION
from imagen_jax.generate import records
from imagen_jax.stage_dir.directory import read_config
from imagen_jax.training import loop
from tests.conftest import GOLDENS


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A folder as goldens/make_old_stage.py left it, which is the working directory."""
    with tarfile.open(GOLDENS / "old_stage.tar.xz") as archive:
        archive.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # Python 3.11.4
    shutil.copytree(GOLDENS / "tiny_bert", tmp_path / "tiny_bert")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_an_old_stage_samples_the_picture_of_then(old):
    record, picture = records.read(old / "run/picture.png")
    stages, steps = load_cascade("run", best=True, return_steps=True)
    best = SamplingConfig(sampler="unipc", steps=4, order=2)
    assert stages[0].config.sampling == record.sampling["base"] == best
    assert steps == record.checkpoints == {"base": 4} and record.prompt == "a red circle" and record.seed == 3
    encoder = TextEncoder.from_config(stages[0].config.text)
    images = sample_cascade(stages, encoder.encode([record.prompt]), image_keys(record.seed, 1))
    pixels = np.round(np.clip(np.asarray(images[0]) * 127.5 + 127.5, 0, 255))
    np.testing.assert_allclose(pixels, picture, atol=1)  # another compiler may round the other way


@pytest.mark.slow
def test_training_of_an_old_stage_continues(old):
    config = read_config("run/base")
    assert config.control_channels == 0 and "version" not in json.loads(Path("run/base/config.json").read_text())
    result = loop.train(config, "run")
    assert int(result.state.step) == 6
    rows = [json.loads(line) for line in Path("run/base/metrics.jsonl").read_text().splitlines()]
    expected = json.loads(Path("losses.json").read_text())
    np.testing.assert_allclose([row["loss"] for row in rows], expected, rtol=1e-4)
    saved = json.loads(Path("run/base/checkpoints/6/config/metadata").read_text())
    assert saved["version"] == VERSION
