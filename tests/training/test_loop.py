"""Interrupted and continued training ends with the parameters of the uninterrupted run, to the bit."""

import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from imagen_jax import TextEncoder, load_cascade, load_stage
from imagen_jax.config.presets import load_preset
from imagen_jax.data import sources, transforms
from imagen_jax.prepare.records import write_records
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.training import loop, reports
from tests.conftest import QUICK, ROOT, write_shapes

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_device")]

STEPS = 24
PRESET = """
from imagen_jax.config import *

def get_config():
    base = StageConfig(
        image_size=8, network=UNetConfig((8,), (1,), (False,), embedding=32, dropout=0.1),
        text=TextConfig(encoder={encoder!r}, width=32, length=12), data=DataConfig(path={data!r}),
        optim=OptimConfig(batch_size=8, warmup_steps=2, learning_rate=1e-2, ema_decay=0.9),
        run=RunConfig(num_steps={steps}, checkpoint_every=5, log_every=1),
    )
    return (base,)
"""


@pytest.fixture(scope="module")
def setup(tmp_path_factory, process_encoder):
    """A preset for a tiny stage on thirty shapes, with a small random language model."""
    folder = tmp_path_factory.mktemp("resume")
    data = write_shapes(folder / "data", train=30)
    preset = folder / "preset.py"
    preset.write_text(PRESET.format(encoder=str(process_encoder), steps=STEPS, data=str(data)))
    return folder, preset


@pytest.fixture
def train(setup, run_script):
    """train(workdir, *options) -> what train.py has left, run in this process."""
    return lambda workdir, *options: run_script("train.py", *arguments(setup[1], workdir), *options)


def arguments(preset, workdir):
    return ["--preset", preset, "--stage", "base", "--workdir", workdir]


@pytest.fixture(scope="module")
def start(setup, compiled_programs):
    """start(workdir, *options) -> a process of train.py; its files have at most `largest_file_kib`."""
    environment = os.environ | compiled_programs | {"XLA_FLAGS": QUICK}

    def call(workdir, *options, largest_file_kib="unlimited"):
        command = ["bash", "-c", f'ulimit -f {largest_file_kib}; exec "$@"', "bash", sys.executable]
        command += [ROOT / "scripts/train.py", *arguments(setup[1], workdir), *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(list(map(str, command)), env=environment, stdout=pipe, stderr=pipe, text=True)

    return call


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for_step(workdir, step, process):
    metrics = workdir / "base/metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < step):
        time.sleep(0.01)


def metrics(workdir):
    return [json.loads(line) for line in (workdir / "base/metrics.jsonl").read_text().splitlines()]


def params(workdir):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(load_cascade(workdir)[0].params)]


@pytest.fixture(scope="module")
def uninterrupted(setup, start):
    workdir = setup[0] / "whole"
    code, _, err = finish(start(workdir))
    assert code == 0, err
    return workdir


def test_interrupted_runs_continue_to_the_bit(setup, uninterrupted, start):
    workdir = setup[0] / "interrupted"
    rng = random.Random(0)
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = len(metrics(workdir)) if (workdir / "base/metrics.jsonl").exists() else 0
        process = start(workdir)
        wait_for_step(workdir, before + rng.randint(1, 7), process)
        process.send_signal(number)
        code, out, err = finish(process)
        assert code == (143 if number == signal.SIGTERM else -signal.SIGKILL), err
        if number == signal.SIGTERM:
            assert "the same command continues" in out + err
    code, _, err = finish(start(workdir))
    assert code == 0, err
    for one, other in zip(params(uninterrupted), params(workdir), strict=True):
        np.testing.assert_array_equal(one, other)
    # Metrics have every step once, though those after a checkpoint were done again.
    for rows in (metrics(uninterrupted), metrics(workdir)):
        assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert metrics(uninterrupted)[-1]["loss"] == metrics(workdir)[-1]["loss"]


def test_a_signal_at_any_moment_leaves_a_checkpoint_of_the_last_step(setup, monkeypatch):
    folder, preset = setup
    (settings,) = load_preset(str(preset))
    read = loop.Meter.read

    def signal_then_read(meter, done):  # where a step waits the longest
        if done == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # as some clusters do
        return read(meter, done)

    monkeypatch.setattr(loop.Meter, "read", signal_then_read)
    result = loop.train(settings, folder / "signal")
    assert result.stopped_by == signal.SIGTERM
    saved = [int(path.name) for path in (folder / "signal/base/checkpoints").iterdir()]
    assert max(saved) == int(result.state.step) == 4


def test_a_checkpoint_comes_after_the_metrics_of_its_step_and_a_failed_evaluation_costs_none(
    setup, monkeypatch
):
    folder, preset = setup
    (settings,) = load_preset(str(preset))
    run = dataclasses.replace(settings.run, num_steps=6, checkpoint_every=3, sample_every=3)
    saved = folder / "evaluation/base/checkpoints"

    def evaluate(monitor, state, writer):
        assert not (saved / str(int(state.step))).exists()
        if int(state.step) == 6:
            raise RuntimeError("no memory to draw")
        return {"caption_gap": 0.5}

    monkeypatch.setattr(loop.Monitor, "evaluate", evaluate)
    with pytest.raises(RuntimeError, match="no memory to draw"):
        loop.train(dataclasses.replace(settings, run=run), folder / "evaluation")
    assert sorted(path.name for path in saved.iterdir()) == ["3", "6"]
    rows = metrics(folder / "evaluation")
    assert [row["step"] for row in rows] == list(range(1, 7)) and rows[2]["caption_gap"] == 0.5


def test_another_data_set_at_the_path_is_refused(setup, uninterrupted, train):
    folder, _ = setup
    workdir, data = folder / "other_data", folder / "data"
    shutil.copytree(uninterrupted, workdir)
    records = [sources.open_source(data)[i] for i in range(29)]
    data.rename(folder / "kept")
    try:
        write_records({"train": records}, data, name="data", description="One less.")
        code, _, err = train(workdir)
    finally:
        shutil.rmtree(data)
        (folder / "kept").rename(data)
    (line,) = re.findall("train.py: (?!warning).*", err)
    assert code == 2 and "must hold the data set that" in line and "30 records from" in line, err
    assert "it now holds 29 records from" in line


def test_other_weights_of_the_text_encoder_are_refused(setup, uninterrupted, train, process_encoder):
    workdir = setup[0] / "other_weights"
    shutil.copytree(uninterrupted, workdir)
    file = workdir / "base/config.json"
    stored = json.loads(file.read_text())
    expected = hashlib.sha256((process_encoder / "model.safetensors").read_bytes()).hexdigest()
    assert stored["text"]["model_hash"] == expected
    file.write_text(json.dumps(stored | {"text": stored["text"] | {"model_hash": 64 * "0"}}))
    code, _, err = train(workdir)
    assert code == 2 and "0000 -> " in err and f"put back the weights of {process_encoder}" in err, err
    code, _, err = train(uninterrupted, "--text.model-hash", "abc")
    assert code == 2 and "text.model_hash: " in err and "-> abc" in err, err


def test_another_text_is_refused_before_embeddings_are_looked_for(uninterrupted, train):
    code, _, err = train(uninterrupted, "--text.length", "7")
    assert code == 2 and "text.length: " in err and "embeddings" not in err, err


def test_a_position_that_is_not_the_steps_own_is_damage(setup, uninterrupted, train):
    folder, _ = setup
    workdir = folder / "position"
    shutil.copytree(uninterrupted, workdir)
    (file,) = (workdir / f"base/checkpoints/{STEPS}/data").rglob("metadata")
    file.write_text('{"next_index": 3}')
    code, out, err = train(workdir)
    assert code == 0 and f"The checkpoint of step {STEPS} cannot be read; moved to" in err, err


def test_steps_that_are_not_finite_end_the_run_with_what_replays_them(setup, monkeypatch):
    folder, preset = setup
    (settings,) = load_preset(str(preset))
    settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, max_skipped=2))
    place = loop.sharding.shard_batch
    monkeypatch.setattr(
        loop.sharding,
        "shard_batch",
        lambda batch, *rest: place(batch | {"x": batch["x"] * np.nan}, *rest),
    )
    with pytest.raises(
        FloatingPointError, match="stage base was not finite in steps 1 to 3, more than run.max_skipped 2"
    ):
        loop.train(settings, folder / "nonfinite")
    found = json.loads((folder / "nonfinite/base" / reports.REPLAY_FILE).read_text())
    assert (found["split"], found["seed"], found["checkpoint"]) == ("train", settings.seed, None)
    assert found["stage"] == "base" and [row["step"] for row in found["steps"]] == [1, 2, 3]
    records = [number for row in found["steps"] for number in row["records"]]
    assert len(records) == 24 and len(set(records)) == 24 and set(records) <= set(range(30))


def test_a_directory_in_use_is_refused_and_unchanged(setup, tmp_path, train):
    with stage_dir.lock_directory(tmp_path / "base"):
        code, _, err = train(tmp_path)
    assert code == 2 and "must not be in use by another run" in err and len(err.strip().splitlines()) == 1, err
    assert [path.name for path in (tmp_path / "base").iterdir()] == [stage_dir.LOCK_FILE]


def test_a_finished_run_can_be_extended_but_not_changed(setup, uninterrupted, train):
    folder, _ = setup
    workdir = folder / "extended"
    shutil.copytree(uninterrupted, workdir)
    code, _, err = train(workdir, "--optim.learning-rate", "0.5")
    assert code == 2 and "optim.learning_rate: 0.01 -> 0.5" in err and len(err.strip().splitlines()) == 1
    assert load_stage(workdir / "base").config.optim.learning_rate == 0.01
    unfinished = workdir / f"base/checkpoints/{STEPS + 1}.orbax-checkpoint-tmp"  # as a killed save leaves it
    shutil.copytree(workdir / f"base/checkpoints/{STEPS}", unfinished)
    options = ("--run.num-steps", str(STEPS + 1), "--run.keep-checkpoints", "1", "--optim.learning-rate", "0.005")
    file = workdir / "base/config.json"  # as docs/training.md says, to go on with a lower rate
    stored = json.loads(file.read_text())
    file.write_text(json.dumps(stored | {"optim": stored["optim"] | {"learning_rate": 0.005}}))
    code, out, err = train(workdir, *options)
    assert code == 0 and f"step {STEPS} of {STEPS + 1}" in out, err
    assert [path.name for path in (workdir / "base/checkpoints").iterdir()] == [str(STEPS + 1)]
    assert any((a != b).any() for a, b in zip(params(workdir), params(uninterrupted), strict=True))


def test_a_full_disk_leaves_the_last_whole_checkpoint(setup, start, train):
    """Files larger than a limit cannot be written, as on a disk that is full; metrics are below it for some steps."""
    workdir = setup[0] / "full"
    code, _, err = train(workdir, "--run.num-steps", "5")
    assert code == 0, err
    code, _, err = finish(start(workdir, "--run.log-every", "24", largest_file_kib=20))
    assert code == 2, err
    (line,) = re.findall("train.py: .*", err)
    assert "Traceback" not in err, err
    assert "The one of step 5 is whole" in line and "free some space" in line, line
    assert int(load_stage(workdir / "base").config.run.num_steps) == STEPS  # it can be read
    code, _, err = train(workdir)
    assert code == 0, err
    assert sorted(path.name for path in (workdir / "base/checkpoints").iterdir()) == ["20", "24"]


def test_captions_that_the_cache_lacks_are_named_and_embedded(setup, tmp_path, train):
    _, preset = setup
    black = transforms.encode_png(np.zeros((8, 8, 3), np.uint8))
    records = [{"image": black, "caption": f"picture {i}"} for i in range(8)]
    write_records({"train": records}, tmp_path / "data", name="data", description="Eight.")
    (settings,) = load_preset(str(preset))
    directory = loop.cache.directory_of(tmp_path / "data")
    encoder = TextEncoder.from_config(settings.text)
    loop.cache.build(["picture 0", "picture 1"], encoder, directory)
    options = ("--data.path", str(tmp_path / "data"), "--run.num-steps", "1")
    code, out, err = train(tmp_path / "run", *options)
    assert code == 0, err
    assert f"{directory} lacks captions, such as 'picture 2', 'picture 3', 'picture 4'" in out
    found = loop.cache.EmbeddingCache.open(directory, encoder.fingerprint)
    assert all(record["caption"] in found for record in records)


def damage(checkpoint):
    for file in checkpoint.rglob("*"):
        if file.is_file() and "d/" in str(file.relative_to(checkpoint)):
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


# What tensorstore's threads find closed, once the first array has failed (scripts do not print it).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damaged_checkpoints_are_skipped_for_the_one_before(setup, uninterrupted, start):
    folder, _ = setup
    workdir = folder / "damaged"
    shutil.copytree(uninterrupted, workdir)
    older, newest = sorted((workdir / "base/checkpoints").iterdir(), key=lambda path: int(path.name))
    damage(newest)
    with pytest.raises(ValueError, match="got an error when it was read"):  # whoever samples is told
        load_cascade(workdir)
    code, out, err = finish(start(workdir))  # a process like the uninterrupted one: the same bits
    assert code == 0 and f"step {older.name} of {STEPS}" in out, err
    assert f"The checkpoint of step {STEPS} cannot be read; moved to" in err
    assert (workdir / "base/damaged" / newest.name).is_dir()
    for one, other in zip(params(uninterrupted), params(workdir), strict=True):
        np.testing.assert_array_equal(one, other)


def test_where_no_checkpoint_can_be_read_none_is_touched(setup, uninterrupted, train):
    folder, _ = setup
    workdir = folder / "all_damaged"
    shutil.copytree(uninterrupted, workdir)
    newest = max((workdir / "base/checkpoints").iterdir(), key=lambda path: int(path.name))
    for each in (workdir / "base/checkpoints").iterdir():
        damage(each)
    before = sorted(str(path) for path in workdir.rglob("*") if path.name != stage_dir.LOCK_FILE)
    code, _, err = train(workdir)
    assert code == 2 and str(newest) in err, err
    assert len(re.findall("^train.py:", err, re.MULTILINE)) == 1 and "Traceback" not in err, err
    assert sorted(str(path) for path in workdir.rglob("*") if path.name != stage_dir.LOCK_FILE) == before


def test_missing_checkpoints_are_named(tmp_path, uninterrupted):
    with pytest.raises(ValueError, match="workdir must hold trained stages, but has none"):
        load_cascade(tmp_path)
    with pytest.raises(ValueError, match="checkpoint of step 7; got steps"):
        load_stage(uninterrupted / "base", step=7)
    empty = tmp_path / "base"
    empty.mkdir()
    shutil.copy(uninterrupted / "base/config.json", empty)
    with pytest.raises(ValueError, match=r"must hold a checkpoint; got steps \[\]"):
        load_cascade(tmp_path)
