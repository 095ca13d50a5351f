"""No damaged file of a stage's directory is used: each is named, or provably without effect."""

import json
import logging
import os
import random
import re
import shutil
from collections import Counter

import pytest

from imagen_jax import load_cascade, load_stage
from imagen_jax.stage_dir import checkpoint
from imagen_jax.stage_dir import directory as stage_dir
from tests.stage_dir.conftest import (
    CONFIG,
    as_pipe,
    outcome,
    resume,
    same,
    sample,
    shapes_of,
    state_of,
    values,
)

# What tensorstore's threads find closed, once the first array has failed (scripts do not print it).
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
NUM_IN_SUITE = 45


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


def flip(file, begin, length):
    content = bytearray(file.read_bytes())
    content[begin + length // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.slow
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


@pytest.mark.parametrize(
    ("changes", "position", "message"),
    [
        ({"step": 11}, {"next_index": 11}, "state.step must be an array, int32; got 11: make it by training.new_state"),
        ({}, {"next_index": 10}, 'data_position must be a dict of JSON values with "next_index" 11, the step'),
        ({}, {}, "data_position must be a dict"),
        ({}, None, "data_position must be a dict"),
        ({}, {"next_index": 11, "rows": {1, 2}}, "data_position must be a dict of JSON values"),
    ],
)
def test_what_could_not_be_restored_is_not_saved(workdir, changes, position, message):
    with checkpoint.Checkpoints(workdir / "base", CONFIG) as checkpoints:
        with pytest.raises(ValueError, match=f"^{message}"):
            checkpoints.save(state_of(11).replace(**changes), position)
        assert checkpoints.latest_step == 10


def test_where_there_is_no_checkpoint_none_is_restored(workdir):
    shutil.rmtree(workdir / "base/checkpoints")
    with checkpoint.Checkpoints(workdir / "base", CONFIG) as checkpoints:
        with pytest.raises(ValueError, match="checkpoints must hold a checkpoint; got none: save one, or begin"):
            checkpoints.restore(shapes_of(state_of(10)))


def test_a_cascade_is_no_stage(workdir, monkeypatch):
    for place in (workdir, str(workdir), "emoji"):
        with pytest.raises(ValueError, match="^directory must be that of one stage; got .*, a cascade: load it"):
            load_stage(place)
    (workdir / "base").rename(workdir / "emoji")
    monkeypatch.chdir(workdir)
    assert load_stage("emoji").config == CONFIG


@pytest.mark.parametrize("steps", [{"bas": 10}, 10, 0, "base"])
def test_steps_are_of_the_stages(workdir, steps):
    with pytest.raises(ValueError, match="^steps must be a dict with keys among base, the stages"):
        load_cascade(workdir, steps=steps)
    with pytest.raises(ValueError, match=r"checkpoints must hold the checkpoint of step 9; got steps \[5, 10\]\.$"):
        load_cascade(workdir, steps={"base": 9})
