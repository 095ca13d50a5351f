"""Stages are loaded into their shards. What was written before config.json had a version still loads, samples and
trains."""

import json
import shutil
import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest

from imagen_jax import (
    TextEncoder,
    image_keys,
    load_cascade,
    load_stage,
    sample_cascade,
    save_cascade,
    save_pretrained,
    sharding,
)
from imagen_jax.config import SamplingConfig
from imagen_jax.config.serialization import VERSION
from imagen_jax.generate import records
from imagen_jax.stage_dir.directory import read_config
from imagen_jax.training import loop
from tests.conftest import GOLDENS


def of_checkpoints(stages, directory, _):
    save_cascade(stages, directory)
    return directory


def of_weight_files(stages, directory, _):
    save_pretrained(stages, directory)
    return directory


def of_pipelines(stages, directory, pipelines):
    return pipelines


@pytest.mark.parametrize("written", [of_checkpoints, of_weight_files, of_pipelines])
def test_parameters_are_loaded_into_their_shards(tiny_stages, cascade_of_two, tmp_path, monkeypatch, written):
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 256)
    directory, mesh = written(tiny_stages, tmp_path / "cascade", cascade_of_two), sharding.make_mesh(4)
    whole, stages = load_cascade(directory), load_cascade(directory, mesh=mesh)
    assert all(leaf.sharding.num_devices == 1 for leaf in jax.tree.leaves(whole))
    leaves = jax.tree.leaves(stages)
    placed = jax.tree.leaves(sharding.state_sharding(stages, mesh))
    assert [leaf.sharding for leaf in leaves] == placed
    assert any(4 * leaf.addressable_shards[0].data.size == leaf.size for leaf in leaves)
    for leaf, other in zip(leaves, jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(leaf, other)
    if written is of_checkpoints:
        (one,) = [each for each in stages if each.config.name == "base"]
        alone = load_stage(directory / "base", mesh=mesh)
        assert jax.tree.map(lambda leaf: leaf.sharding, alone) == jax.tree.map(lambda leaf: leaf.sharding, one)


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
@pytest.mark.usefixtures("one_device_here")
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
