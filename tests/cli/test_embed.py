"""Captions to pictures with other language models: embed_text.py, train.py and sample.py as a person runs them."""

import re
import runpy
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from imagen_jax import TextEncoder, load_cascade
from imagen_jax.data import sources, transforms
from imagen_jax.prepare import shapes
from imagen_jax.prepare.records import write_records
from imagen_jax.text import cache, cache_files, cache_rows, weights
from tests.conftest import GOLDENS, ROOT

ENCODERS = {"tiny_t5_v1_1": [], "tiny_clip": ["--text.output", "penultimate"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty pictures of shapes in two splits."""
    directory = tmp_path_factory.mktemp("journey") / "data"
    records = [
        {"image": transforms.encode_png(e["image"]), "caption": e["caption"]}
        for e in shapes.examples("train", "full", 40)
    ]
    parts = {"train": records[:32], "test": records[32:]}
    write_records(parts, directory, name="data", description="Forty shapes.")
    return directory


def run(script, *arguments):
    """Runs a script in this process; its exit status."""
    path = str(ROOT / "scripts" / script)
    before, sys.argv = sys.argv, [path, *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv = before
    return stop.value.code


@pytest.mark.slow
@pytest.mark.usefixtures("one_device_here")
@pytest.mark.parametrize("name", ENCODERS)
def test_the_shapes_preset_with_another_encoder(data, tmp_path, capsys, monkeypatch, name):
    # Of the same length: the second network is the first one's program.
    text = ["--data.path", data, "--text.encoder", GOLDENS / name, "--text.length", 16, *ENCODERS[name]]
    assert run("embed_text.py", "--preset", "shapes", *text, "--store", "int8") in (0, None)
    out = capsys.readouterr().out
    num = len({e["caption"] for split in ("train", "test") for e in sources_of(data, split)})
    assert f"{num} distinct captions by {GOLDENS / name}, {num} of them new at" in out
    per_caption = int(re.search(r"(\d+) bytes per caption in int8", out)[1])
    assert per_caption * num == pytest.approx(
        sum(f.stat().st_size for f in cache.directory_of(data).glob("*/*_record")), num
    )
    assert run("embed_text.py", "--preset", "shapes", *text) in (0, None)
    assert f"{num} distinct captions by {GOLDENS / name}, 0 of them new;" in capsys.readouterr().out

    # Training finds them all and never reads the language model.
    small = ["--optim.optimizer", "adamw", "--network.channels", 8, "--network.num-res-blocks", 1]
    small += ["--network.attention", "True", "--network.head-dim", 8, "--image-size", 8]
    with monkeypatch.context() as patch:
        patch.setattr(weights, "load_params", lambda *_: pytest.fail("the language model was read"))
        arguments = ["--preset", "shapes", "--stage", "base", "--workdir", tmp_path / "run", *text]
        assert run("train.py", *arguments, *small, "--run.num-steps", 3) in (0, None)
    (stage,) = load_cascade(tmp_path / "run")
    assert stage.config.text.width == 32 and stage.config.text.encoder == str(GOLDENS / name)

    # Sampling takes the encoder, and what it was asked for, from the checkpoint.
    prompts = ["a red circle", "a small blue square left of a green star"]
    arguments = ["--workdir", tmp_path / "run", "--steps", 2, "--output", tmp_path / "out"]
    assert run("sample.py", *arguments, "--prompts", *prompts) in (0, None)
    assert len(list((tmp_path / "out").glob("*-seed0.png"))) == 2
    encoder = TextEncoder.from_config(stage.config.text)
    stored = cache.EmbeddingCache.open(cache.directory_of(data), encoder.fingerprint)
    caption = sources_of(data, "train")[0]["caption"]
    found = np.asarray(encoder.encode([caption], length=stage.config.text.length).embeddings[0])
    np.testing.assert_allclose(found[: len(stored[caption])], stored[caption], atol=np.abs(found).max() / 100)


def sources_of(data, split):
    source = sources.open_source(data, split)
    return source.read(range(len(source)))


def test_training_refuses_a_data_set_with_embeddings_of_another_encoder(data, tmp_path, capsys):
    """They may have taken days, so others are not made unasked."""
    copy = tmp_path / "data"
    shutil.copytree(data, copy, ignore=shutil.ignore_patterns("text_embeddings"))
    text = ["--data.path", copy, "--text.encoder", GOLDENS / "tiny_t5_v1_1"]
    assert run("embed_text.py", "--preset", "shapes", *text) in (0, None)
    capsys.readouterr()
    for change in (["--text.dtype", "bfloat16"], ["--text.length", "9"]):
        code = run(
            "train.py", "--preset", "shapes", "--stage", "base", "--workdir", tmp_path / "run", *text, *change
        )
        err = capsys.readouterr().err
        assert code == 2 and "got only those of" in err and "float32, last, at most 40 tokens" in err
        assert "imagen-jax embed" in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


# scripts/embed_text.py of a process that kills itself when it has given away a number of captions.
KILLED = """
import os, signal, sys
from imagen_jax.cli import main
from imagen_jax.text import cache_files

left, add = int(sys.argv.pop(1)), cache_files.Writer.add
def add_or_die(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    add(*arguments)
cache_files.Writer.add, cache_files._MAX_CAPTIONS = add_or_die, 100
main.run("embed")
"""


@pytest.mark.slow
def test_killed_and_shared_by_processes(process_encoder, tmp_path):
    """Hard kills, then two processes side by side: every caption is embedded once."""
    captions = [
        f"a {a} {b} {c}" for a in ("red", "blue", "green") for b in ("cat", "dog") for c in range(200)
    ]
    data = tmp_path / "data"
    picture = transforms.encode_png(np.zeros((8, 8, 3), np.uint8))
    records = [{"image": picture, "caption": caption} for caption in captions]
    write_records({"train": records}, data, name="data", description="Many captions.")
    arguments = [
        "--preset",
        "shapes",
        "--data.path",
        data,
        "--text.encoder",
        process_encoder,
        "--batch-size",
        8,
    ]
    root = cache.directory_of(data)
    for left, kept in ((7, 0), (250, 200)):
        run = subprocess.run(
            [sys.executable, "-c", KILLED, *map(str, [left, *arguments])],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert run.returncode == -signal.SIGKILL, run.stderr
        (unfinished,) = root.glob("*/*.unfinished")  # that of the process before is removed
        records = cache_files.RecordFiles(unfinished.parent)
        assert sum(len(records.keys(number)) for number in records.numbers()) == kept
    command = [sys.executable, ROOT / "scripts/embed_text.py", *arguments]
    both = [
        subprocess.Popen(
            [*map(str, command), "--share-index", str(i), "--share-count", "2"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    for process in both:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    (description,) = root.glob("*/embeddings.json")
    records = cache_files.RecordFiles(description.parent)
    assert sum(len(records.keys(number)) for number in records.numbers()) == len(
        captions
    )  # none is there twice
    found = cache.EmbeddingCache.open(root, description.parent.name)
    assert len(found) == len(captions) and all(caption in found for caption in captions)
    assert not list(root.glob("*/*.unfinished"))
    source = sources.open_source(data)
    assert (cache_rows.load(description.parent, source) != cache_files.MISSING).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--share-index", "2", "--share-count", "2"], "--share-index must be at most 1; got 2"),
        (["--share-index", "-1", "--share-count", "2"], "--share-index must be at least 0; got -1"),
        (["--share-count", "1e23"], "1e23"),
        (["--share-count", str(10**23)], "--share-count must be at most"),
        (["--share-count", "0"], "--share-count must be at least 1; got 0"),
        (["--share-count", "-7"], "--share-count must be at least 1; got -7"),
        (["--share-index", str(10**23)], "--share-index must be at most 0"),
        (["--share-index", "nan"], "nan"),
        (["--batch-size", "0"], "--batch-size must be at least 1; got 0"),
        (["--batch-size", str(10**23)], "--batch-size must be at most"),
        (["--batch-size", "1.5"], "1.5"),
        (["--fsdp", str(10**23)], "--fsdp must be at most"),
        (["--fsdp", "0"], "--fsdp must be at least 1; got 0"),
        (["--fsdp", "3"], "--fsdp must divide the number of devices 8"),
        (["--stage", "x" * 9999], "--stage must be one of base, sr64"),
        (["--splits", "validation"], "train (32), test (8); got 'validation'"),
        (["--data.path", "nowhere"], "nowhere must be a data set"),
        (["--store", "int4"], "int4"),
        (["--text.output", "pooled"], "output must be 'last' for the model in"),
        (["--text.output", "first"], "first"),
        (["--text.dtype", "float64"], "float64"),
        (["--text.length", "49"], "max_length = 48; got 49"),
        (["--text.encoder", "./nothing"], "neither"),
        (["--stage", "sr9"], "--stage must be one of base, sr64"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(data, capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(data.rglob("*"))
    given = {"--data.path": data, "--text.encoder": GOLDENS / "tiny_bert"}
    text = [part for name, value in given.items() if name not in arguments for part in (name, value)]
    assert run("embed_text.py", "--preset", "shapes", *text, *arguments) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1, err
    assert sorted(data.rglob("*")) == before
