import json
from pathlib import Path

import jax
import pytest

from imagen_jax import config as C
from imagen_jax import stage
from imagen_jax.config.presets import load_preset
from imagen_jax.config.validation import validate_cascade

PRESETS = sorted(path.stem for path in (Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_valid_and_survive_json(preset):
    for config in load_preset(preset):
        again = C.from_dict(json.loads(json.dumps(C.to_dict(config))))
        assert again == config and hash(again) == hash(config)
        assert jax.eval_shape(lambda c=config: stage.init(c, jax.random.key(0)))


def test_unknown_preset():
    with pytest.raises(ValueError, match="must be one of .*quickstart.*got 'imagenet'"):
        load_preset("imagenet")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("base64:300m", 320.5),
        ("base64:500m", 568.2),
        ("base64:1b", 1089.4),
        ("base64:2b", 2263.4),
        ("sr256", 583.3),
        ("sr1024", 574.9),
        ("sr1024:400m", 417.6),
    ],
)
def test_paper_sizes(preset, millions):
    """Both recipes of a preset have the same network."""
    for recipe in ("improved", "paper"):
        words = f"{preset}{',' if ':' in preset else ':'}{recipe}"
        (config,) = load_preset(words)
        shapes = jax.eval_shape(lambda c=config: stage.init(c, jax.random.key(0)))
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6 == pytest.approx(millions, abs=0.05)
        assert config.optim.batch_size == 2048
    assert config.process.prediction == "eps" and config.process.loss_weight == "plain"


def test_paper_size_stages_make_a_cascade():
    names = ("base64", "sr256", "sr1024")
    stages = [load_preset(f"{name}:{recipe}") for recipe in ("paper", "improved") for name in names]
    for three in (stages[:3], stages[3:]):
        assert [c.image_size for c in validate_cascade(tuple(c for (c,) in three))] == [64, 256, 1024]
    assert stages[2][0].process.schedule == "linear" and stages[2][0].train_size == 256


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("base64:3b", "size: 300m, 500m, 1b, 2b; recipe: improved, paper"),
        ("base64:2b,1b", "at most one word each"),
        ("quickstart:paper", "it has none"),
    ],
)
def test_unknown_variants_are_refused(preset, message):
    with pytest.raises(ValueError, match=message):
        load_preset(preset)


# --- Presets that cannot be used ------------------------------------------------------------------


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
