"""pytorch_model.bin to safetensors: the formats of torch, and files that are damaged or hostile."""

import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from imagen_jax.text import conversion, torch_file
from tests.conftest import GOLDENS

TORCH = GOLDENS / "torch"


@pytest.mark.parametrize("sources", [["odd.bin"], ["odd_legacy.bin"], ["sharded"]])
def test_a_directory_is_converted(sources, tmp_path):
    expected = load_file(TORCH / "values.safetensors")
    directory = tmp_path / "model"
    if sources == ["sharded"]:
        shutil.copytree(TORCH / "sharded", directory)
    else:
        directory.mkdir()
        shutil.copy(TORCH / sources[0], directory / "pytorch_model.bin")
    before = sorted(directory.iterdir())
    written = torch_file.convert(directory, directory)
    assert written == directory / "model.safetensors" and sorted(directory.iterdir()) == sorted(
        [*before, written]
    )
    found = load_file(written)
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
    with pytest.raises(ValueError, match="must not have safetensors yet"):
        torch_file.convert(directory, directory)


def test_nothing_to_convert_is_told(tmp_path):
    with pytest.raises(ValueError, match="must hold pytorch_model.bin"):
        torch_file.convert(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="must not have safetensors yet"):
        conversion.convert(GOLDENS / "tiny_bert")


def test_networks_of_diffusers_are_converted_under_their_name(tmp_path):
    directory = tmp_path / "unet"
    directory.mkdir()
    shutil.copy(TORCH / "odd.bin", directory / "diffusion_pytorch_model.bin")
    (directory / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    written = conversion.convert(directory, tmp_path / "converted")
    assert written == tmp_path / "converted/diffusion_pytorch_model.safetensors"
    assert set(load_file(written)) == set(load_file(TORCH / "values.safetensors"))
    assert conversion.convert(directory) == directory / "diffusion_pytorch_model.safetensors"
    with pytest.raises(ValueError, match="must not have safetensors yet; got diffusion_pytorch_model.safetensors"):
        conversion.convert(directory)
