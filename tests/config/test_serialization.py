import dataclasses
import json

import pytest

from imagen_jax import config as C
from imagen_jax.config import serialization
from imagen_jax.config.validation import validate
from imagen_jax.stage_dir.directory import read_config


def without_version(config):
    """The dict of `config` as it was written before there were versions."""
    data = C.to_dict(config)
    del data["version"]
    data["cond_image_channels"] = data.pop("control_channels")
    versions = (serialization._ADDED_IN_1, serialization._ADDED_IN_2, serialization._ADDED_IN_3)
    versions += (serialization._ADDED_IN_5,)
    for part, added in (item for version in versions for item in version.items()):
        data[part] = {name: value for name, value in data[part].items() if name not in added}
    return without_distillation(data)


def without_distillation(data):
    """The dict as it was written before version 4."""
    del data["distilled"], data["optim"]["teacher"]
    return data


def test_json_survives_and_begins_with_its_version(tiny_configs):
    for config in tiny_configs:
        data = json.loads(json.dumps(C.to_dict(config)))
        assert next(iter(data.items())) == ("version", serialization.VERSION)
        assert C.from_dict(data) == config


def test_files_of_version_1_have_whole_images_and_uniform_times(tiny_configs):
    for config in tiny_configs:
        data = C.to_dict(config) | {"version": 1}
        for part, added in serialization._ADDED_IN_2.items():
            data[part] = {name: value for name, value in data[part].items() if name not in added}
        assert C.from_dict(without_distillation(data)) == config


def test_files_of_version_3_are_of_stages_without_a_teacher(tiny_configs):
    for config in tiny_configs:
        assert C.from_dict(without_distillation(C.to_dict(config) | {"version": 3})) == config


def test_files_of_version_2_have_no_adapters(tiny_configs):
    data = C.to_dict(tiny_configs[0]) | {"version": 2}
    for part, added in serialization._ADDED_IN_3.items():
        data[part] = {name: value for name, value in data[part].items() if name not in added}
    del data["lora"]
    data = without_distillation(data)
    assert C.from_dict(data) == tiny_configs[0]
    with pytest.raises(ValueError, match=r"missing: \['lora'\]"):
        C.from_dict(data | {"version": 3})


def test_files_of_version_4_do_not_know_the_weights_of_the_encoder(tiny_configs):
    data = C.to_dict(tiny_configs[0]) | {"version": 4}
    del data["text"]["model_hash"]
    assert C.from_dict(data) == tiny_configs[0]


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


def test_what_is_not_known_is_no_difference(tiny_configs):
    with_hash = lambda value: dataclasses.replace(config, text=dataclasses.replace(config.text, model_hash=value))
    config = tiny_configs[0]
    assert C.differences(with_hash(None), with_hash("a")) == []
    assert C.differences(with_hash("b"), with_hash("a")) == ["text.model_hash: b -> a"]


def test_json_that_is_no_file(tmp_path):
    with pytest.raises(ValueError, match="must be a file; got something else"):
        C.read_json(tmp_path)
    with pytest.raises(ValueError, match="must be a file; got nothing"):
        C.read_json(tmp_path / "absent")


def changed(path, value):
    data = C.to_dict(C.StageConfig())
    *parts, last = path.split(".")
    part = data
    for name in parts:
        part = part[name]
    part[last] = value
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must hold JSON; got what cannot be read"),
        (b"{", "must hold JSON"),
        (b"\xff\x00\xfe", "must hold JSON"),
        (b"[" * 100_000, "must hold JSON"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "must hold JSON"),
        (b'{"seed": 1, "seed": 2}', "keys must be distinct; got .*seed.* more than once"),
        (b"5", "StageConfig must be a JSON object; got 5"),
        (b"null", "StageConfig must be a JSON object; got None"),
        (b"[]", r"StageConfig must be a JSON object; got \[\]"),
        (b"{}", r"must hold exactly the keys of a StageConfig; got unknown: \[\], missing: \['"),
        (changed("text", 5), "text must be a JSON object; got 5"),
        (changed("optim", []), "optim must be a JSON object"),
        (changed("text.length", "many"), "text.length must be a whole number .*; got 'many'"),
        (changed("text.length", [32]), r"text.length must be a whole number .*; got \[32\]"),
        (changed("text.length", {"a": 1}), "text.length must be a whole number"),
        (changed("text.length", 10**400), "text.length must be at most 65536"),
        (changed("optim.learning_rate", float("nan")), "optim.learning_rate must be a finite number; got nan"),
        (changed("optim.learning_rate", float("inf")), "optim.learning_rate must be a finite number; got inf"),
        (changed("image_size", 64.0), "image_size must be a whole number .*; got 64.0"),
        (changed("image_size", True), "image_size must be a whole number .*; got True"),
        (changed("network.kind", "mlp"), "network.kind must be one of unet, efficient_unet.*; got 'mlp'"),
        (changed("network.kind", ["unet"]), "network.kind must be one of"),
        (changed("network", 5), "network.kind must be one of .* got None"),
        (changed("network.channels", 8), "network.channels must be a tuple"),
        (changed("network.channels", [[8], 8, 8, 8]), r"network.channels\[0\] must be a whole number"),
        (changed("sampling.steps", 10**9), "sampling.steps must be at most 10000"),
        (changed("sampling.sampler", None), "sampling.sampler must be one of"),
        (changed("data.path", 5), "data.path must be a str; got 5"),
        (changed("run.prompts", [1]), r"run.prompts\[0\] must be a str"),
        (changed("colour", 1), r"unknown: \['colour'\]"),
    ],
)  # fmt: skip
def test_config_files_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read_config(tmp_path)
    assert "config.json" in str(error.value) and "\n" not in str(error.value)


def test_a_config_file_that_can_be_used(tmp_path):
    (tmp_path / "config.json").write_bytes(changed("seed", 7))
    assert validate(read_config(tmp_path)).seed == 7


def test_configurations_of_before_minimise_the_denoising_loss(tiny_configs):
    data = C.to_dict(tiny_configs[0])
    del data["version"], data["optim"]["objective"]
    assert C.from_dict(data) == tiny_configs[0]
