import dataclasses
import json

import pytest

from imagen_jax import config as C
from imagen_jax.config import serialization


def without_version(config):
    """The dict of `config` as it was written before there were versions."""
    data = C.to_dict(config)
    del data["version"]
    data["cond_image_channels"] = data.pop("control_channels")
    for part, added in serialization._ADDED_IN_1.items():
        data[part] = {name: value for name, value in data[part].items() if name not in added}
    return data


def test_json_survives_and_begins_with_its_version(tiny_configs):
    for config in tiny_configs:
        data = json.loads(json.dumps(C.to_dict(config)))
        assert next(iter(data.items())) == ("version", serialization.VERSION)
        assert C.from_dict(data) == config


def test_other_fields_are_refused(tiny_configs):
    data = C.to_dict(tiny_configs[0])
    with pytest.raises(ValueError, match=r"unknown: \['colour'\]"):
        C.from_dict(data | {"colour": 1})
    with pytest.raises(ValueError, match=r"unknown: \['cond_image_channels'\]"):  # its name before versions
        C.from_dict(data | {"cond_image_channels": 1})
    del data["seed"]
    with pytest.raises(ValueError, match=r"missing: \['seed'\]"):
        C.from_dict(data)


def test_files_without_a_version_load(tiny_configs):
    config = dataclasses.replace(tiny_configs[0], control_channels=2)
    data = without_version(config)
    then = {
        part: dataclasses.replace(getattr(config, part), **added)
        for part, added in serialization._ADDED_IN_1.items()
    }
    assert C.from_dict(data) == dataclasses.replace(config, **then)
    assert then["run"].max_skipped == 0 != config.run.max_skipped
    with pytest.raises(ValueError, match=r"unknown: \['cond_image_channels'\]"):
        C.from_dict(data | {"control_channels": 1})
    with pytest.raises(ValueError, match="text must be a JSON object; got 3"):
        C.from_dict(data | {"text": 3})


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (serialization.VERSION + 1, "version must be at most .*: update imagen_jax"),
        (-1, "version must be a whole number; got -1"),
        ("1", "version must be a whole number; got '1'"),
        (True, "version must be a whole number; got True"),
        (None, "version must be a whole number; got None"),
    ],
)
def test_other_versions_are_refused(tiny_configs, version, message):
    with pytest.raises(ValueError, match=message):
        C.from_dict(C.to_dict(tiny_configs[0]) | {"version": version})


def test_sampling_options_of_before_spacing_lose_what_is_unused():
    data = C.to_dict(C.SamplingConfig(sampler="ddpm", ddpm_gamma=0.3)) | {"eta": 0.5}
    del data["spacing"]
    assert C.from_dict(data, C.SamplingConfig) == C.SamplingConfig(sampler="ddpm", ddpm_gamma=0.3)


def test_differences_are_named(tiny_configs):
    config = tiny_configs[0]
    other = dataclasses.replace(config, seed=4, optim=dataclasses.replace(config.optim, b2=0.5))
    assert C.differences(config, other) == ["optim.b2: 0.999 -> 0.5", "seed: 0 -> 4"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1, "a": 2}', "keys must be distinct; got .*'a'.* more than once"),
        ("{", "must hold JSON"),
        ("[" * 100_000, "must hold JSON"),
        (b"\xff", "must hold JSON"),
    ],
)
def test_json_that_cannot_be_read(tmp_path, content, message):
    file = tmp_path / "config.json"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message):
        C.read_json(file)


def test_json_that_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="must be a file; got something else"):
        C.read_json(tmp_path)
    with pytest.raises(ValueError, match="must be a file; got nothing"):
        C.read_json(tmp_path / "absent")
