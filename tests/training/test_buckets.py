"""A run whose directory is a bucket: on a local S3 server, every file of it, by two runs after one another."""

import json

import jax
import numpy as np
import pytest

from imagen_jax import Stage, config, load_cascade, load_stage, save_cascade, stage
from imagen_jax.stage_dir import best_sampling, checkpoint, checkpoint_files
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.storage import files, locations
from imagen_jax.training import loop, writer
from tests.conftest import TINY_BERT, write_shapes

boto3 = pytest.importorskip("boto3")

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """A tiny stage on sixteen shapes."""
    data = write_shapes(tmp_path_factory.mktemp("data") / "data", train=16)
    return config.StageConfig(
        image_size=8,
        network=config.UNetConfig((8,), (1,), (False,), embedding=32),
        text=config.TextConfig(encoder=str(TINY_BERT), width=32, length=12),
        data=config.DataConfig(path=str(data)),
        optim=config.OptimConfig(batch_size=8, warmup_steps=2, ema_decay=0.9),
        run=config.RunConfig(
            num_steps=3, checkpoint_every=2, log_every=1, sample_every=0, validate_every=0, stall_timeout=600
        ),
    )


@pytest.fixture(scope="module")
def trained(bucket, preset):
    result = loop.train(preset, f"{bucket}/runs/a")
    return f"{bucket}/runs/a", result.state


def names(url):
    from fsspec.core import url_to_fs

    fs, key = url_to_fs(url)
    return {path.removeprefix(key + "/") for path in fs.find(key)}


@pytest.mark.slow
def test_everything_of_a_run_lies_in_the_bucket(trained):
    workdir, state = trained
    found = names(f"{workdir}/base")
    assert {"config.json", "metrics.jsonl"} <= found
    assert any(name.startswith("events.") for name in found)
    assert stage_dir.LOCK_FILE not in found  # the run has ended
    assert {name.split("/")[1] for name in found if name.startswith("checkpoints/")} == {"2", "3"}
    rows = files.read_text(locations.location(workdir, "") / "base/metrics.jsonl").splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]
    for loaded in (load_cascade(workdir)[0], load_stage(f"{workdir}/base")):
        for one, other in zip(
            jax.tree.leaves(loaded.params), jax.tree.leaves(state.ema_params), strict=True
        ):
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("best", [False, True])
def test_sampling_options_are_kept_in_the_bucket(trained, best):
    workdir, _ = trained
    options = config.SamplingConfig(steps=7)
    file = best_sampling.save_best_sampling(workdir, {"base": options}, {"score": 1.0})
    assert str(file) == f"{workdir}/sampling.json"
    assert (load_cascade(workdir, best=best)[0].config.sampling.steps == 7) == best


@pytest.fixture
def run(load_script, monkeypatch, trained):
    """run(script, *arguments) on the trained cascade in the bucket."""
    monkeypatch.setattr("imagen_jax.compilation.use_compilation_cache", lambda: None)

    def call(name, *arguments):
        script = load_script(name)
        command = [name, "--workdir", trained[0], "--steps", "1", "--guidance-scale", "1", "--batch-size", "8"]
        monkeypatch.setattr("sys.argv", [*command, *arguments])
        script.main(script.parse([*command[1:], *arguments]))

    return call


@pytest.mark.slow
def test_pictures_are_written_into_the_bucket(trained, run):
    workdir, _ = trained
    run("sample", "--prompts", "a red star")
    found = names(f"{workdir}/samples")
    assert "grid.png" in found and len(found) == 2, found
    run("sample", "--prompts", "a red star")  # nothing is replaced
    assert names(f"{workdir}/samples") == found | {"grid-2.png", "a-red-star-seed0-2.png"}


@pytest.mark.slow
def test_evaluate_and_sweep_write_into_the_bucket(trained, preset, run, capsys):
    workdir, _ = trained
    data = ["--data", preset.data.path, "--split", "train", "--num", "3"]
    files.write(locations.location(workdir, "") / "evaluation/alignment.md", "of an earlier run")
    run("evaluate", *data)
    assert names(f"{workdir}/evaluation") == {"alignment.md", "alignment.json", "grid.png"}
    assert "| all |" in files.read_text(locations.location(workdir, "") / "evaluation/alignment.md")
    run("sweep", *data)
    found = names(f"{workdir}/sweep")
    assert {"sweep.md", "sweep.json", "pareto.png", "best.png"} < found and len(found) == 7, found
    assert f"{workdir}/sampling.json" in capsys.readouterr().out
    assert load_cascade(workdir, best=True)[0].config.sampling.steps == 1


@pytest.mark.parametrize("output", ["s3://nowhere", "s3://nowhere/a", "s3://nowhere/a/b/c"])
def test_no_bucket_is_made_for_an_output(bucket, output):
    with pytest.raises((ValueError, OSError), match="s3://nowhere"):
        files.check_directory(locations.location(output, "--output"), "--output")
    files.check_directory(locations.location(f"{bucket}/a/b/c", "--output"), "--output")
    files.check_directory(locations.location(bucket, "--output"), "--output")
    assert [b["Name"] for b in boto3.client("s3").list_buckets()["Buckets"]] == ["bucket"]


def test_a_writer_keeps_earlier_steps_and_drops_later_ones(bucket, preset):
    """Two writers in turn, as two processes of a run that was killed after step 2."""
    place = locations.location(f"{bucket}/runs/w/base", "")
    picture = writer.Image.new("RGB", (4, 4))
    with writer.Writer(place, preset, 0) as first:
        for step in (1, 2, 3):
            first.write(step, {"loss": step})
        assert "metrics.jsonl" not in names(str(place))  # not at every step
        first.picture(3, "samples", picture)
        assert {"metrics.jsonl", "samples/samples-00000003.png"} <= names(str(place))
    with writer.Writer(place, preset, 2) as second:
        second.write(3, {"loss": 30})
    rows = [json.loads(row) for row in files.read_text(place / "metrics.jsonl").splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1), (2, 2), (3, 30)]
    assert len([name for name in names(str(place)) if name.startswith("events.")]) == 2
    assert first._directory != second._directory and not second._directory.exists()


def state_of(step):
    from imagen_jax import sharding
    from imagen_jax.structs import TrainState

    tree = {"a": jax.numpy.arange(6.0).reshape(2, 3) + step}
    state = TrainState(jax.numpy.int32(step), tree, jax.tree.map(jax.numpy.copy, tree), {"m": 2 * tree["a"]})
    return jax.device_put(state, sharding.replicated(sharding.make_mesh()))


def abstract():
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(0))


@pytest.mark.slow
def test_checkpoints_are_kept_damaged_and_continued_as_on_a_disk(bucket, preset):
    from fsspec.core import url_to_fs

    place = locations.location(f"{bucket}/runs/c/base", "")
    with stage_dir.lock_directory(place), checkpoint.Checkpoints(place, preset) as checkpoints:
        for step in (1, 2, 3):  # two are kept
            checkpoints.save(state_of(step), {"next_index": step})
    with checkpoint.Checkpoints(place, preset) as checkpoints:
        assert checkpoints.latest_step == 3
        state, position = checkpoints.restore(abstract())
        np.testing.assert_array_equal(state.params["a"], state_of(3).params["a"])
        assert position == {"next_index": 3}
    fs, key = url_to_fs(f"{place}/checkpoints/3")
    for name in fs.find(key):
        if "/d/" in name:
            fs.pipe_file(name, fs.cat_file(name)[:7])
    with checkpoint.Checkpoints(place, preset) as checkpoints:
        assert int(checkpoints.restore(abstract())[0].step) == 2
        assert checkpoints.latest_step == 2
    found = names(str(place))
    assert any(name.startswith("damaged/3/") for name in found)
    assert not any(name.startswith("checkpoints/3/") for name in found)


def test_a_cascade_is_saved_to_a_bucket_and_never_over_another(bucket, preset):
    shapes_of = jax.eval_shape(lambda: stage.init(preset, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes_of)
    save_cascade((Stage(params, preset),), f"{bucket}/runs/saved")
    (loaded,) = load_cascade(f"{bucket}/runs/saved")
    assert loaded.config == preset
    assert all((np.asarray(leaf) == 0.5).all() for leaf in jax.tree.leaves(loaded.params))
    with pytest.raises(ValueError, match="directory must hold no stages yet; got s3://bucket/runs/saved with base"):
        save_cascade((loaded,), f"{bucket}/runs/saved")


def test_a_checkpoint_without_its_last_file_does_not_count(bucket, preset):
    from fsspec.core import url_to_fs

    place = locations.location(f"{bucket}/runs/half/base", "")
    with checkpoint.Checkpoints(place, preset) as checkpoints:
        for step in (1, 2):
            checkpoints.save(state_of(step), {"next_index": step})
    fs, key = url_to_fs(f"{place}/checkpoints/2/commit_success.txt")
    fs.rm(key)
    assert checkpoint_files.list_steps(place) == [1]
    with checkpoint.Checkpoints(place, preset) as checkpoints:
        assert checkpoints.latest_step == 1
    assert not any(name.startswith("checkpoints/2/") for name in names(str(place)))  # removed, as on a disk


def test_a_bucket_that_is_not_there_is_one_line_and_is_not_made(bucket):
    for call in (
        lambda: stage_dir.DirectoryLock(locations.location("s3://nowhere/run", "")).acquire(),
        lambda: files.write(locations.location("s3://nowhere/a", ""), "x"),
    ):
        with pytest.raises(OSError, match="s3://nowhere/.*") as error:
            call()
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ValueError, match="must hold a trained stage"):
        load_stage("s3://nowhere/run")
    assert [b["Name"] for b in boto3.client("s3").list_buckets()["Buckets"]] == ["bucket"]


def test_objects_are_written_new_and_created_once(bucket):
    place = locations.location(f"{bucket}/files", "")
    assert files.create(place / "a", "one") and not files.create(place / "a", "two")
    assert files.read_text(place / "a") == "one"
    assert [files.write_new(place / "b.txt", text).name for text in "xyz"] == ["b.txt", "b-2.txt", "b-3.txt"]
    assert files.read_text(place / "b-3.txt") == "z"
    files.write(place / "a", "three")
    assert files.read_text(place / "a") == "three"
    with pytest.raises(RuntimeError), files.replacing(place / "a") as file:
        file.write(b"half")
        raise RuntimeError
    assert files.read_text(place / "a") == "three"
