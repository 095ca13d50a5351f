"""Presets and JSON files that are damaged or hostile: one line that names the file, and nothing is written."""

import json

import pytest

from imagen_jax import config as C
from imagen_jax.config.presets import load_preset
from imagen_jax.config.validation import validate
from imagen_jax.stage_dir.directory import read_config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"x = 1\n", "must define a function get_config that returns the stages; got None"),
        (b"get_config = 5\n", "must define a function get_config .*; got 5"),
        (b"class get_config: pass\n", "must define a function get_config .*; got the class get_config"),
        (b"x = (\n", "must be Python that runs without errors; got SyntaxError in line 1"),
        (b"\0\1\2binary", "must be Python that runs without errors; got (SyntaxError|ValueError)"),
        (b"x = '\xff\xfe'\n", "must be Python that runs without errors; got SyntaxError"),
        (b"import nowhere_to_be_found\n", "got ModuleNotFoundError in line 1"),
        (b"x = 1\ny = 1 / 0\n", "got ZeroDivisionError in line 2"),
        (b"import sys\nsys.exit(3)\n", r"got SystemExit in line 2 \(3\): presets are run"),
        (b"raise SystemExit\n", "got SystemExit in line 1"),
        (b"def f(): f()\nf()\n", "got RecursionError in line 1"),
        (b"def get_config(): return get_config()\n", "got RecursionError in line 1"),
        (b"def get_config(): raise KeyError('a')\n", "got KeyError in line 1"),
        (b"def get_config(size): pass\n", "got TypeError"),
        (b"def get_config(size: 'Nowhere' = 1): pass\n", "got NameError"),
        (b"def get_config(): pass\n", "must return a tuple of StageConfig from get_config; got None"),
        (
            b"def get_config(): return 'base'\n",
            "must return a tuple of StageConfig from get_config; got 'base'",
        ),
        (b"def get_config(): return {'base': 1}\n", "must return a tuple of StageConfig"),
        (b"def get_config(): return (5,)\n", "must return a tuple of StageConfig"),
        (b"def get_config(): return ()\n", "stages must be at least one StageConfig"),
        (b"def get_config():\n while True: yield 1\n", "must return a tuple of StageConfig"),
        (b"async def get_config(): pass\n", "must return a tuple of StageConfig"),
        (
            b"from imagen_jax.config import *\ndef get_config(): return StageConfig()\n",
            "must return a tuple of StageConfig from get_config; got a StageConfig",
        ),
        (
            b"from imagen_jax.config import *\ndef get_config(): return (StageConfig(seed=-1),)\n",
            "seed must be at least 0; got -1",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine")
def test_presets_that_cannot_be_used(tmp_path, content, message):
    file = tmp_path / "mine.py"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_preset(str(file))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [file]  # no cache of bytecode


@pytest.mark.parametrize(
    "name", ["", " ", "\0", "a" * 5000, "..", "/", "nowhere.py", None, 5, b"quickstart", ["a"]]
)
def test_names_that_are_no_preset(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.py").mkdir()
    for each in (name, "folder.py"):
        with pytest.raises(ValueError, match="^--preset must"):
            load_preset(each)


def test_sparse_presets_are_not_read(tmp_path):
    with (tmp_path / "mine.py").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ValueError, match="mine.py must have at most 1048576 bytes; got 8589934592"):
        load_preset(str(tmp_path / "mine.py"))


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
        (b"", "must hold JSON, but cannot be read"),
        (b"{", "must hold JSON"),
        (b"\xff\x00\xfe", "must hold JSON"),
        (b"[" * 100_000, "must hold JSON"),
        (b'{"seed": ' + b"1" * 5000 + b"}", "must hold JSON"),
        (b'{"seed": 1, "seed": 2}', "keys must be distinct; got .*seed.* more than once"),
        (b"5", "StageConfig must be a JSON object; got 5"),
        (b"null", "StageConfig must be a JSON object; got None"),
        (b"[]", r"StageConfig must be a JSON object; got \[\]"),
        (b"{}", r"must hold exactly the keys of a StageConfig; unknown: \[\], missing: \['"),
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


def test_a_config_file_that_can(tmp_path):
    (tmp_path / "config.json").write_bytes(changed("seed", 7))
    assert validate(read_config(tmp_path)).seed == 7
