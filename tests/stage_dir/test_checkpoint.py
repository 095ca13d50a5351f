"""No damaged file of a stage's directory is used: each is named, or provably without effect."""

import contextlib
import json
import logging
import os
import random
import re
import shutil
import socket
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from imagen_jax import config, load_cascade, load_stage, sharding, stage
from imagen_jax.config import to_dict
from imagen_jax.stage_dir import best_sampling, checkpoint, checkpoint_files, integrity
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.storage import files
from imagen_jax.structs import TrainState

# What tensorstore's threads find closed, once the first array has failed (scripts do not print it).
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

CONFIG = config.StageConfig(
    image_size=8,
    network=config.UNetConfig((8,), (1,), (False,), embedding=32),
    text=config.TextConfig(encoder="test", width=8, length=4),
)
NUM_IN_SUITE = 45


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
def workdir(original, tmp_path, monkeypatch, caplog):
    checkpoint.logger.addHandler(caplog.handler)  # it does not propagate
    template = state_of(0).ema_params  # a network of these parameters, which nothing here runs
    monkeypatch.setattr(stage, "init", lambda *_: template)
    shutil.copytree(original, tmp_path / "run")
    yield tmp_path / "run"
    checkpoint.logger.removeHandler(caplog.handler)


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


def hurt(file, kind, rng):
    content = bytearray(file.read_bytes())
    if kind == "flip" and content:
        place = rng.randrange(len(content))
        content[place] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del content[rng.randrange(max(1, len(content))) :]
    elif kind == "zeros":
        start = rng.randrange(max(1, len(content)))
        content[start : start + 64] = bytes(len(content[start : start + 64]))
    elif kind == "longer":
        content += bytes(rng.randrange(256) for _ in range(rng.randint(1, 40)))
    file.write_bytes(content)


def kind_of(file, workdir):
    name = re.sub(r"[0-9a-f]{32}", "*", str(file.relative_to(workdir)))
    return name.replace("checkpoints/10/", "").replace("base/", "")


def damage(workdir, seed, num, caplog):
    """Damages one file after the other, every kind in turn; (kind of file, kind of damage, outcomes) of each."""
    rng = random.Random(seed)
    expected = {use: use(workdir) for use in (sample, resume)}
    by_kind = {}
    for file in sorted(path for path in workdir.rglob("*") if path.is_file()):
        if "/checkpoints/5/" not in str(file):  # of the newest checkpoint
            by_kind.setdefault(kind_of(file, workdir), []).append(file)
    kinds, rows = sorted(by_kind), []
    kinds += [kind for kind in kinds if kind.endswith("ocdbt.process_0/d/*")] * 3  # where the arrays are
    for i in range(num):
        kind = kinds[i % len(kinds)]
        (file,) = rng.choices(by_kind[kind], [path.stat().st_size + 1 for path in by_kind[kind]])
        how = rng.choice(("flip", "flip", "flip", "cut", "zeros", "longer"))
        whole = file.read_bytes()
        try:
            hurt(file, how, rng)
            found = [outcome(use, workdir, expected[use], caplog) for use in (sample, resume)]
        finally:
            file.write_bytes(whole)
        rows.append((kind, how, *(result for result, _ in found), [message for _, message in found]))
    return rows


@pytest.mark.slow
def test_random_damage_is_named_or_without_effect(workdir, caplog):
    rows = damage(workdir, 0, NUM_IN_SUITE, caplog)
    bad = [row for row in rows if not {row[2], row[3]} <= {"named", "no effect"}]
    assert not bad, bad
    arrays = [row for row in rows if row[0].endswith("ocdbt.process_0/d/*")]
    assert any("named" in row[2:4] for row in arrays)
    assert Counter(row[2] for row in rows)["named"] > 5
    assert sample(workdir) and resume(workdir)  # and all is as before


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


def flip(file, begin, length):
    content = bytearray(file.read_bytes())
    content[begin + length // 2] ^= 4
    file.write_bytes(content)


def test_array_and_file_are_named_and_the_checkpoint_before_is_taken(workdir, caplog):
    folder = workdir / "base/checkpoints/10"
    for item in ("state", "ema_params"):
        array = "params/conv/kernel" if item == "state" else "conv/kernel"
        flip(*values(folder, f"{item}/{array}"))
    with pytest.raises(ValueError, match=r"ema_params/conv/kernel \(in .*ema_params/ocdbt.process_0/d/"):
        load_stage(workdir / "base")
    assert load_stage(workdir / "base", step=5).params is not None
    caplog.set_level(logging.INFO)
    with checkpoint.Checkpoints(workdir / "base", CONFIG) as checkpoints:
        state, position = checkpoints.restore(shapes_of(state_of(0)))
    assert int(state.step) == 5 and position["next_index"] == 5 and same(state, state_of(5))
    assert re.search("step 10 cannot be read; moved to .*damaged/10.*state/params/", caplog.text)
    assert os.listdir(workdir / "base/damaged") == ["10"]


def exchange(folder, name):
    other = folder.parent / "5"
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    copy = shutil.copytree if (other / name).is_dir() else shutil.copy
    copy(other / name, folder / name)


def edit_record(folder, **changes):
    file = folder / "data/metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def drop_record_key(folder, key):
    file = folder / "data/metadata"
    content = json.loads(file.read_text())
    del content[key]
    file.write_text(json.dumps(content))


# What is done to the checkpoint of step 10 -> who notices: "s" sampling, "r" resuming
DELIBERATE = {
    "ema_params of another step": (lambda f: exchange(f, "ema_params"), "sr"),
    "state of another step": (lambda f: exchange(f, "state"), "r"),
    "record of another step": (lambda f: exchange(f, "data"), "sr"),
    "array files of another step": (lambda f: exchange(f, "ema_params/ocdbt.process_0"), "sr"),
    "index of another step": (lambda f: exchange(f, "ema_params/manifest.ocdbt"), "sr"),
    "the whole of another step": (lambda f: [exchange(f, name) for name in ("ema_params", "state", "data")], "sr"),
    "record without checksums": (lambda f: drop_record_key(f, "arrays"), "sr"),
    "record without its own checksum": (lambda f: drop_record_key(f, "checksum"), "sr"),
    "record with a checksum less": (lambda f: edit_record(f, arrays={}), "sr"),
    "record of another position": (lambda f: edit_record(f, position={"next_index": 9}), "sr"),
    "record that is a list": (lambda f: (f / "data/metadata").write_text("[]"), "sr"),
    "record that is gone": (lambda f: (f / "data/metadata").unlink(), "sr"),
    "no record": (lambda f: shutil.rmtree(f / "data"), "sr"),
    "no ema_params": (lambda f: shutil.rmtree(f / "ema_params"), "sr"),
    "no array files": (lambda f: shutil.rmtree(f / "ema_params/ocdbt.process_0/d"), "sr"),
    "empty array files": (
        lambda f: [file.write_bytes(b"") for file in (f / "ema_params/ocdbt.process_0/d").iterdir()], "sr",
    ),
    "configuration of another network": (
        lambda f: files.write_json(
            f / "config/metadata", to_dict(CONFIG) | {"image_size": 16}), "s",
    ),
    "no configuration": (lambda f: shutil.rmtree(f / "config"), "s"),
    "a pipe for an array file": (lambda f: as_pipe(values(f, "ema_params/conv/kernel")[0]), "sr"),
    "a pipe for the record": (lambda f: as_pipe(f / "data/metadata"), "sr"),
    "a pipe for the index": (lambda f: as_pipe(f / "ema_params/manifest.ocdbt"), "sr"),
    "a socket for the metadata": (lambda f: as_socket(f / "ema_params/_METADATA"), "sr"),
}  # fmt: skip


def as_pipe(file):
    with contextlib.suppress(FileNotFoundError):
        file.unlink()
    os.mkfifo(file)


def as_socket(file):
    file.unlink()
    here = os.getcwd()
    os.chdir(file.parent)  # names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(file.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(("change", "noticed"), DELIBERATE.values(), ids=DELIBERATE)
def test_what_does_not_belong_together_is_named(workdir, caplog, change, noticed):
    expected = {use: use(workdir) for use in (sample, resume)}
    change(workdir / "base/checkpoints/10")
    for use, letter in ((sample, "s"), (resume, "r")):
        result, message = outcome(use, workdir, expected[use], caplog)
        assert result == ("named" if letter in noticed else "no effect"), message


# A file of the directory in whose place a pipe stands -> how it is named
PIPES = {
    "base/config.json": lambda w: load_cascade(w),
    "sampling.json": lambda w: load_cascade(w, best=True),
    "base/.lock": lambda w: stage_dir.DirectoryLock(w / "base").acquire(),
    "base/checkpoints/10/_CHECKPOINT_METADATA": lambda w: checkpoint.Checkpoints(w / "base", CONFIG),
    "base/checkpoints/5/config/metadata": lambda w: checkpoint.Checkpoints(w / "base", CONFIG),
}


@pytest.mark.parametrize(("name", "use"), PIPES.items(), ids=PIPES)
def test_a_pipe_is_named_and_not_waited_for(workdir, name, use):
    as_pipe(workdir / name)
    with pytest.raises((ValueError, OSError), match=re.escape(str(workdir / name))):
        use(workdir)


@pytest.mark.parametrize("name", ["ema_params/_METADATA", "ema_params/manifest.ocdbt", "data/metadata"])
def test_metadata_with_a_tail_without_end_is_named_and_not_read(workdir, name):
    file = workdir / "base/checkpoints/10" / name
    os.truncate(file, 10**10)  # takes no room on the disk
    with pytest.raises(ValueError, match=re.escape(f"{file}"[:20])) as error:
        load_stage(workdir / "base")
    assert "must have at most 268435456 bytes; got 10000000000" in str(error.value.__cause__)


def test_a_pipe_for_metrics_costs_the_metrics(workdir, caplog):
    from imagen_jax.training import writer

    caplog.set_level(logging.INFO)
    as_pipe(workdir / "base/metrics.jsonl")
    with writer.Writer(workdir / "base", CONFIG, 0) as metrics:
        metrics.write(1, {"loss": 1.0})
    assert "metrics.jsonl must be a regular file; it is a pipe" in caplog.text


def test_checkpoints_of_before_are_used_with_one_notice(workdir, caplog):
    file = workdir / "base/checkpoints/10/data/metadata"
    file.write_text(json.dumps({"next_index": 10, "data_set": "10 records"}))
    caplog.set_level(logging.INFO)
    params, _ = sample(workdir)
    assert same(params, state_of(10).ema_params)
    assert caplog.text.count("was written by an earlier version, without checksums") == 1
    assert resume(workdir)[1] == {"next_index": 10, "data_set": "10 records"}


def test_changed_sampling_options_are_told(workdir, caplog):
    """In config.json they may be meant; in sampling.json they have a checksum."""
    file = workdir / "base/config.json"
    content = json.loads(file.read_text())
    content["sampling"]["guidance_scale"] = 7.0
    file.write_text(json.dumps(content))
    caplog.set_level(logging.INFO)
    assert load_stage(workdir / "base").config.sampling.guidance_scale == 7
    assert "sampling.guidance_scale: 5.0 -> 7.0" in caplog.text
    file = workdir / "sampling.json"
    content = json.loads(file.read_text())
    content["stages"]["base"]["steps"] = 8
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="as imagen-jax sweep stored them; got others: remove the line"):
        load_cascade(workdir, best=True)
    file.write_text(json.dumps({"stages": content["stages"]}))
    assert load_cascade(workdir, best=True)[0].config.sampling.steps == 8


# --- races --------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_checkpoint_that_a_run_removes_is_not_damage(workdir, monkeypatch, when):
    """The newest that was listed is removed, file by file, and a newer one is there."""
    read = checkpoint_files.restore_item
    root = workdir / "base/checkpoints"
    newest = root / "10"

    def removed(folder, name, wanted):
        monkeypatch.setattr(checkpoint_files, "restore_item", read)
        with checkpoint.Checkpoints(workdir / "base", CONFIG) as checkpoints:
            checkpoints.save(state_of(15), {"next_index": 15})
        if when == "before":
            shutil.rmtree(newest)
        else:
            shutil.rmtree(newest / "ema_params/ocdbt.process_0")
        return read(folder, name, wanted)

    monkeypatch.setattr(checkpoint_files, "restore_item", removed)
    assert same(load_stage(workdir / "base").params, state_of(15).ema_params)


def test_a_wanted_step_that_is_removed_is_told_as_such(workdir, monkeypatch):
    def removed(folder, *_):
        shutil.rmtree(folder)
        raise FileNotFoundError(folder)

    monkeypatch.setattr(checkpoint_files, "restore_item", removed)
    with pytest.raises(ValueError, match=r"must hold the checkpoint of step 5; got steps \[10\]"):
        load_stage(workdir / "base", step=5)


MOVES = {
    "renamed": lambda d: d.rename(d.with_name("elsewhere")),
    "workdir renamed": lambda d: d.parent.rename(d.parent.with_name("elsewhere")),
    "removed": shutil.rmtree,
    "replaced": lambda d: (d.rename(d.with_name("old")), shutil.copytree(d.with_name("old"), d)),
    "without its configuration": lambda d: (d / "config.json").unlink(),
    "a file in its place": lambda d: (d.rename(d.with_name("old")), d.write_text("")),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_a_directory_that_was_moved_is_not_made_anew(workdir, move):
    directory = workdir / "base"
    with (
        pytest.raises(OSError, match="must stay where it is while a run trains in it"),
        stage_dir.lock_directory(directory) as hold,
        checkpoint.Checkpoints(directory, CONFIG, hold) as checkpoints,
    ):
        move(directory)
        before = sorted(map(str, Path(workdir).rglob("*")))
        checkpoints.save(state_of(15), {"next_index": 15})
    assert sorted(map(str, Path(workdir).rglob("*"))) == before
