"""A directory of a stage with two checkpoints of small states, and what sampling and training read of it."""


import contextlib
import os
import shutil

import jax
import numpy as np
import pytest

from imagen_jax import config, load_cascade, sharding, stage
from imagen_jax.config import to_dict
from imagen_jax.stage_dir import best_sampling, checkpoint, integrity
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.structs import TrainState
from tests.deepfloyd_models import cascade_of_two, change_json, goldens, load_model, pipeline  # noqa: F401

CONFIG = config.StageConfig(
    image_size=8,
    network=config.UNetConfig((8,), (1,), (False,), embedding=32),
    text=config.TextConfig(encoder="test", width=8, length=4),
)


def state_of(step):
    """A random state with arrays that are large, small, empty, whole numbers and half precision."""
    rng = np.random.default_rng(step)
    params = {
        "conv": {"kernel": rng.normal(size=(3, 3, 8, 32)), "bias": rng.normal(size=32)},
        "dense": {"kernel": rng.normal(size=(160, 60))},
    }
    params = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf, "float32"), params)
    half = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), params)
    opt_state = ({"count": jax.numpy.int32(step)}, half)
    ema_params = jax.tree.map(lambda leaf: leaf + 1, params)
    state = TrainState(jax.numpy.int32(step), params, ema_params, opt_state)
    return jax.device_put(state, sharding.replicated(sharding.make_mesh()))


def shapes_of(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A cascade of one stage with checkpoints of steps 5 and 10."""
    workdir = tmp_path_factory.mktemp("original")
    directory = workdir / "base"
    stage_dir.write_config(directory, CONFIG)
    (directory / "metrics.jsonl").write_text('{"step": 5, "loss": 0.5}\n{"step": 10, "loss": 0.25}\n')
    (directory / stage_dir.LOCK_FILE).touch()
    with checkpoint.Checkpoints(directory, CONFIG) as checkpoints:
        for step in (5, 10):
            checkpoints.save(state_of(step), {"next_index": step, "data_set": "10 records"})
    best_sampling.save_best_sampling(workdir, {"base": config.SamplingConfig(steps=9)}, {"score": 0.5})
    return workdir


@pytest.fixture
def workdir(original, tmp_path, monkeypatch):
    template = state_of(0).ema_params  # a network of these parameters, which nothing here runs
    monkeypatch.setattr(stage, "init", lambda *_: template)
    shutil.copytree(original, tmp_path / "run")
    return tmp_path / "run"


def same(one, other):
    return all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes()
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def sample(workdir):
    """What sampling would use: (parameters, configuration)."""
    (found,) = load_cascade(workdir, best=True)
    used = to_dict(found.config)
    return found.params, {name: used[name] for name in used if name not in ("run", "data", "optim")}


def resume(workdir):
    """What training would continue from, of the newest checkpoint: (state, position)."""
    folder = workdir / "base/checkpoints/10"
    state, record = checkpoint._restored(folder, 10, shapes_of(state_of(10)))
    integrity.verify(folder, checkpoint._items(state), record)
    return state, record.position


def outcome(use, workdir, expected, caplog):
    """"named", "no effect" or "SILENT" for what `use` makes of a damaged directory, and the message."""
    caplog.clear()
    try:
        found = use(workdir)
    except (ValueError, OSError) as error:
        is_named = str(workdir) in str(error) and len(str(error).splitlines()) == 1
        return ("named" if is_named else "NOT NAMED"), str(error)
    if same(found[0], expected[0]) and found[1] == expected[1]:
        return "no effect", caplog.text
    return ("named" if str(workdir) in caplog.text else "SILENT"), caplog.text


def values(folder, array):
    """(file, begin, length) of a piece of an array's values."""
    import tensorstore as ts

    item, _, name = array.partition("/")
    store = ts.KvStore.open(f"file://{folder / item}/").result()
    root = ts.ocdbt.dump(store).result()["versions"][-1]["root"]["location"]
    for key, value in integrity._entries(ts, store, root, ""):
        if key.startswith(name.replace("/", ".") + "/") and value is not None:
            _, directory, file, begin, length = value.split(":")
            return folder / item / (directory + file), int(begin), int(length)
    raise AssertionError(f"{array} lies in the index")


def as_pipe(file):
    with contextlib.suppress(FileNotFoundError):
        file.unlink()
    os.mkfifo(file)
