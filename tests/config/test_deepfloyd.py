"""Presets of DeepFloyd IF have what the published configurations say."""

import dataclasses
import json

import pytest

from imagen_jax.config.presets import load_preset
from imagen_jax.interop import deepfloyd
from imagen_jax.models.if_unet import RELEASED
from tests.conftest import GOLDENS


@pytest.mark.parametrize(
    ("preset", "names"),
    [
        ("deepfloyd", ("IF-I-XL", "IF-II-L")),
        ("deepfloyd:l", ("IF-I-L", "IF-II-L")),
        ("deepfloyd:m", ("IF-I-M", "IF-II-M")),
    ],
)
def test_presets_are_what_is_read_from_the_published_files(preset, names, tmp_path):
    goldens = json.loads((GOLDENS / "if_released.json").read_text())
    for config, name in zip(load_preset(preset), names, strict=True):
        (tmp_path / "config.json").write_text(json.dumps(goldens[name]["config"]))
        read = deepfloyd.read_config(tmp_path)
        assert dataclasses.replace(config, data=read.data, optim=read.optim, run=read.run) == read
        assert config.network == RELEASED[name]
