"""--preset names presets, and cascades and stages that exist."""

import dataclasses

import pytest

from imagen_jax import load_cascade, save_cascade
from imagen_jax.cli import plan, stages
from imagen_jax.config.presets import load_preset
from tests.deepfloyd_models import TINY_IF


@pytest.fixture(scope="module")
def cascade(tiny_stages, tmp_path_factory):
    directory = tmp_path_factory.mktemp("stages") / "run"
    save_cascade(tiny_stages, directory)
    return directory


def test_a_directory_stands_for_the_configurations_of_its_stages(cascade, tiny_stages):
    assert stages.of_preset(str(cascade)) == tuple(each.config for each in tiny_stages)
    assert stages.of_preset(str(cascade / "sr16")) == (tiny_stages[1].config,)
    (found,) = stages.of_preset(str(TINY_IF))
    assert found == load_cascade(TINY_IF)[0].config
    options, config = plan.parse(["--preset", str(TINY_IF), "--optim.batch-size", "4"])
    assert config == dataclasses.replace(found, optim=dataclasses.replace(found.optim, batch_size=4))


def test_names_of_presets_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    assert stages.of_preset("shapes") == load_preset("shapes")


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("", "^--preset must not be empty"),
        ("none", "^--preset must be one of .*, the path of a .py file, or the directory of a cascade; got 'none'"),
        ("a" * 5000, "^--preset must be one of"),
        (".", "must hold trained stages, but has none"),
        ("hf://me", "hf://OWNER/NAME"),
    ],
)
def test_what_is_neither_is_one_line(preset, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        stages.of_preset(preset)
    assert "\n" not in str(error.value)
