"""The command convert: a pickled encoder is one step away."""

import runpy
import shutil
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file

from imagen_jax.text import pretrained
from imagen_jax.text.encoder import TextEncoder
from tests.conftest import GOLDENS
from tests.text.conftest import state_pickle

ROOT = GOLDENS.parents[1]


def numpy_bin(tensors, path):
    """A file as torch.save writes it, of NumPy arrays."""
    with zipfile.ZipFile(path, "w") as archive:
        pieces = []
        for i, (name, values) in enumerate(tensors.items()):
            strides, steps = [], 1
            for size in reversed(values.shape):
                strides.insert(0, steps)
                steps *= size
            storage = ("storage", "FloatStorage", str(i), "cpu", values.size)
            pieces.append((name, storage, 0, values.shape, tuple(strides)))
            archive.writestr(f"archive/data/{i}", values.tobytes())
        archive.writestr("archive/data.pkl", state_pickle(pieces))


@pytest.fixture
def pickled_t5(tmp_path):
    """The tiny T5 with pytorch_model.bin alone, which has a decoder, as whole models do."""
    directory = shutil.copytree(GOLDENS / "tiny_t5_v1_1", tmp_path / "t5")
    tensors = load_file(directory / "model.safetensors")
    tensors["decoder.block.0.layer.0.SelfAttention.q.weight"] = np.ones((24, 32), np.float32)
    numpy_bin(tensors, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    return directory


def run(*arguments):
    """Runs the script in this process; its exit status."""
    path = str(ROOT / "scripts/convert_weights.py")
    before, sys.argv = sys.argv, [path, *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv = before
    return stop.value.code


def test_a_pickled_encoder_is_one_step_away(pickled_t5, capsys):
    with pytest.raises(ValueError, match=f"run `imagen-jax convert --model {pickled_t5}`"):
        TextEncoder.from_pretrained(pickled_t5)
    assert run("--model", pickled_t5) in (0, None)
    assert f"{pickled_t5}/model.safetensors: written." in capsys.readouterr().out
    found = load_file(pickled_t5 / "model.safetensors")
    expected = load_file(GOLDENS / "tiny_t5_v1_1/model.safetensors")
    assert set(found) == set(expected)  # without the decoder
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    assert TextEncoder.from_pretrained(pickled_t5).token_ids(["a red cat"])


def test_a_name_on_the_hub_is_converted_into_a_directory(pickled_t5, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    calls = []

    def fake(name, revision=None, allow_patterns=None, ignore_patterns=None):
        calls.append((name, revision, allow_patterns))
        return str(pickled_t5)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    with pytest.raises(
        ValueError, match="imagen-jax convert --model t5-v1_1-xxl --output DIRECTORY.*NAME@REVISION"
    ):
        pretrained.resolve("t5-v1_1-xxl")
    assert run("--model", "t5-v1_1-xxl") == 2  # into the hub's cache
    assert "--output must be given" in capsys.readouterr().err
    output = tmp_path / "models" / "xxl"
    assert run("--model", "google/t5-v1_1-xxl@refs/pr/2", "--output", output) in (0, None)
    assert calls[-1][:2] == ("google/t5-v1_1-xxl", "refs/pr/2") and "pytorch_model*.bin" in calls[-1][2]
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert not (pickled_t5 / "model.safetensors").exists()
    assert TextEncoder.from_pretrained(output).width == 32
    before = (output / "model.safetensors").stat().st_mtime_ns
    assert run("--model", "google/t5-v1_1-xxl", "--output", output) == 2
    assert "must be a new directory" in capsys.readouterr().err
    assert (output / "model.safetensors").stat().st_mtime_ns == before
