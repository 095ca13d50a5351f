"""What a run says about itself: metrics, validation, samples, the files they go to, and the watchdog."""

import dataclasses
import json
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from imagen_jax import chips, sharding
from imagen_jax.config import RunConfig
from imagen_jax.data import sources, transforms
from imagen_jax.diffusion import losses
from imagen_jax.prepare import shapes
from imagen_jax.prepare.records import write_records
from imagen_jax.training import meter as meters
from imagen_jax.training import monitor as monitors
from imagen_jax.training import state as states
from imagen_jax.training import utilisation
from imagen_jax.training import writer as writers

# --- meter ----------------------------------------------------------------------------------------


def metrics(loss, logsnr, skipped=0):
    """Those of a step with one image of each of these losses and levels."""
    sums, counts = losses.by_logsnr(jax.numpy.asarray(loss, "float32"), jax.numpy.asarray(logsnr, "float32"))
    names = [f"loss_logsnr/{bucket}" for bucket in losses.BUCKETS]
    scalars = {"grad_norm": 1.0, "learning_rate": 0.1, "ema_distance": 0.5}
    return scalars | {
        "loss": jax.numpy.asarray(np.mean(loss)),
        "skipped": skipped,
        "sums": dict(zip(names, zip(sums, counts, strict=True), strict=True)),
    }


def settings(config, **run):
    return dataclasses.replace(config, run=dataclasses.replace(RunConfig(), **run))


def test_means_are_over_the_steps_that_were_kept(tiny_configs):
    meter = meters.Meter(settings(tiny_configs[0]), 10)
    meter.add(metrics([1.0, 3.0], [-7, 0]), 0)
    meter.add(metrics([np.nan, 1.0], [-7, 0], skipped=1), 2)
    meter.add(metrics([2.0, 6.0], [0, 7]), 1)
    values, skipped, hopeless = meter.read(13)
    assert (values["loss"], values["skipped"], skipped, hopeless, values["undecodable"]) == (
        3,
        1,
        [12],
        None,
        3,
    )
    by_level = {key.split("/")[1]: value for key, value in values.items() if key.startswith("loss_logsnr/")}
    assert by_level == {"..-6": 1.0, "-2..2": 2.5, "6..": 6.0}
    meter.add(metrics([4.0], [0]), 0)
    assert meter.read(14)[0]["loss"] == 4


def test_too_many_skipped_in_a_row_are_hopeless_also_over_two_readings(tiny_configs):
    meter = meters.Meter(settings(tiny_configs[0], max_skipped=2), 0)
    for skipped in (0, 1, 1):
        meter.add(metrics([1.0], [0], skipped), 0)
    assert meter.read(3)[2] is None
    meter.add(metrics([1.0], [0], 1), 0)
    assert meter.read(4)[2] == range(2, 5)


def test_utilisation_is_the_work_over_the_peak(tiny_configs, monkeypatch):
    chip = dataclasses.replace(chips.CHIPS["v4"], flops=1e9)
    monkeypatch.setattr(chips, "of_kind", lambda kind: chip)
    monkeypatch.setattr(utilisation, "model_flops_per_image", lambda config: 4e6)  # tested with the plans
    per_image = utilisation.utilisation_per_image_s(tiny_configs[0], 8)
    assert per_image == pytest.approx(4e6 / 8e9)
    meter = meters.Meter(tiny_configs[0], 0, per_image)
    meter.add(metrics([1.0], [0]), 0)
    values = meter.read(1)[0]
    assert values["mfu"] == pytest.approx(values["images_per_s"] * per_image)


def test_losses_by_level_are_exclusive_and_complete():
    rng = np.random.default_rng(0)
    values, levels = rng.random(100).astype("float32"), rng.uniform(-12, 12, 100).astype("float32")
    sums, counts = losses.by_logsnr(jax.numpy.asarray(values), jax.numpy.asarray(levels))
    edges = (-np.inf, *losses.BUCKET_EDGES, np.inf)
    for i, (low, high) in enumerate(zip(edges, edges[1:], strict=False)):
        is_in = (levels >= low) & (levels < high)
        np.testing.assert_allclose(sums[i], values[is_in].sum(), rtol=1e-5)
        assert counts[i] == is_in.sum()


# --- monitor --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("monitor") / "data"
    records = [
        {"image": transforms.encode_png(e["image"]), "caption": e["caption"]}
        for e in shapes.examples("validation", "single", 12)
    ]
    write_records({"validation": records}, directory, name="data", description="Twelve shapes.")
    return directory


@pytest.fixture(scope="module")
def source(directory):
    return sources.open_source(directory, "validation")


class Embeddings:
    """Two random tokens per caption."""

    def __getitem__(self, caption):
        return (
            np.random.default_rng(len(caption) + sum(map(ord, caption)))
            .normal(size=(2, 12))
            .astype("float32")
        )

    def rows(self, source):
        return lambda numbers: [self[record["caption"]] for record in source.read(numbers)]


class Pictures:
    """A writer that keeps what it is given."""

    def __init__(self):
        self.pictures = []

    def picture(self, step, name, picture):
        self.pictures.append((step, name, picture.size))


def evaluate(stage, source, num_devices, **run):
    config = settings(stage.config, validate_every=2, sample_every=4, sample_images=3, **run)
    mesh = sharding.make_mesh(devices=jax.devices()[:num_devices])
    params = sharding.replicate(stage.params, mesh)
    state = states.TrainState(step=np.int32(4), params=None, ema_params=params, opt_state=None)
    monitor = monitors.Monitor(config, mesh, source, source, Embeddings())
    assert [monitor.is_due(step) for step in (1, 2, 4)] == [False, True, True]
    writer = Pictures()
    return monitor, state, monitor.evaluate(state, writer), writer


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_an_evaluation_is_the_same_again_and_on_other_devices(tiny_stages, source, index):
    monitor, state, values, writer = evaluate(tiny_stages[index], source, 1)
    again = monitor.evaluate(state, writer)
    keys = [key for key in values if key.startswith(("validation", "caption"))]
    assert len(keys) >= 5 and [values[key] for key in keys] == [again[key] for key in keys]
    assert [(step, name) for step, name, _ in writer.pictures] == [(4, "samples")] * 2
    if index == 0:
        _, _, others, _ = evaluate(tiny_stages[index], source, 8)
        np.testing.assert_allclose([others[k] for k in keys], [values[k] for k in keys], atol=1e-5)


@pytest.mark.slow
def test_a_network_that_does_not_see_text_has_no_caption_gap(tiny_stages, source, monkeypatch):
    """Every caption has the same embedding, so a wrong one is as good as the right one."""
    loud = jax.tree.map(lambda leaf: 3 * leaf, tiny_stages[0])  # random parameters react to text, but little
    _, _, values, _ = evaluate(loud, source, 1)
    assert abs(values["caption_gap"]) > 2e-5
    assert values["caption_gap"] == pytest.approx(
        values["validation_loss_shuffled"] / values["validation_loss"] - 1
    )
    monkeypatch.setattr(Embeddings, "__getitem__", lambda self, caption: np.ones((2, 12), "float32"))
    _, _, values, _ = evaluate(loud, source, 1)
    assert abs(values["caption_gap"]) < 1e-6


@pytest.mark.slow
def test_broken_records_are_counted_and_a_single_picture_has_no_other_caption(tiny_stages, source, tmp_path):
    records = [source[i] for i in range(8)]
    records[2]["image"] = b"no picture"
    write_records({"validation": records}, tmp_path / "data", name="data", description="Eight.")
    damaged = sources.open_source(tmp_path / "data", "validation")
    _, _, values, _ = evaluate(tiny_stages[0], damaged, 1)
    assert values["validation_undecodable"] == 1 and "caption_gap" in values
    few = sources.open_source(tmp_path / "data", "validation[:4]")  # half as many as stand in a batch
    _, _, values, _ = evaluate(tiny_stages[0], few, 1)
    assert values["caption_gap"] != 0
    optim = dataclasses.replace(tiny_stages[0].config.optim, batch_size=1)
    single = dataclasses.replace(tiny_stages[0].config, optim=optim)
    _, _, values, _ = evaluate(tiny_stages[0].replace(config=single), damaged, 1)
    assert values["validation_undecodable"] == 1 and values["validation_loss"] > 0
    assert "caption_gap" not in values and "validation_loss_shuffled" not in values


@pytest.mark.parametrize(
    ("index", "images", "records", "prompts", "labels"),
    [
        (0, 8, 6, (), "012345"),
        (0, 4, 6, (), "0123"),
        (0, 1, 6, (), "0"),
        (0, 6, 6, (), "012345"),
        (0, 5, 6, ("a", "b"), "ababa"),  # other noise makes other pictures of a prompt
        (1, 8, 6, (), "012345"),
        (1, 8, 1, (), "0"),
        (1, 3, 6, (), "012"),
    ],
)
def test_samples_are_as_many_as_there_are_captions(
    tiny_stages, directory, monkeypatch, index, images, records, prompts, labels
):
    """Nothing is computed here: every picture is black."""
    config = settings(tiny_stages[index].config, sample_images=images, prompts=prompts)
    source = sources.open_source(directory, f"validation[:{records}]")
    captions = [record["caption"] for record in (source[i] for i in range(records))]
    seen = []
    monkeypatch.setattr(
        monitors.Monitor, "_run", lambda self, _, params, text, low_res: np.zeros((len(text.mask), 8, 8, 3))
    )
    monkeypatch.setattr(monitors, "labelled_grid", lambda images, labels, **_: seen.append((images, labels)))
    mesh = sharding.make_mesh()
    monitors.Monitor(config, mesh, source, source, Embeddings()).sample(None)
    ((shown, names),) = seen
    names = [name for name in names if name != "low-res"]
    assert names == [captions[int(label)] if label.isdigit() else label for label in labels]
    assert len(shown) == len(labels) * (1 + index)
    if index and records > 1:
        assert len({picture.tobytes() for picture in shown[::2]}) == len(labels)  # none twice


def test_no_picture_meets_its_own_caption_where_that_can_be():
    for batch_size in range(2, 20):
        for num in range(2, 24):
            apart = monitors._apart(batch_size, num)
            rows = np.arange(batch_size)
            meets_itself = rows % num == np.roll(rows, apart) % num
            assert not meets_itself.any() or (num == 2 and batch_size % 2), (batch_size, num)
            assert num < batch_size or apart == batch_size // 2


# --- writer ---------------------------------------------------------------------------------------


def test_metrics_and_pictures_are_written_and_those_of_lost_steps_dropped(tiny_configs, tmp_path):
    from PIL import Image

    for first, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with writers.Writer(tmp_path, tiny_configs[0], first) as writer:
            for step in steps:
                writer.write(step, {"loss": 1.0 / step, "loss_logsnr/-2..2": 0.5, "grad_norm": float("nan")})
            writer.picture(steps[-1], "samples", Image.new("RGB", (8, 8), "red"))
        with (tmp_path / writers.METRICS_FILE).open("a") as file:
            file.write('{"step": 9, "lo')  # a process that was killed while it wrote
    rows = [json.loads(line) for line in (tmp_path / writers.METRICS_FILE).read_text().splitlines()[:4]]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[2]["loss"] == pytest.approx(1 / 3)
    assert not any("grad_norm" in row for row in rows)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "samples-00000003.png", "samples-00000004.png",
    ]  # fmt: skip
    assert len(list(tmp_path.glob("events.*"))) == 2


def test_a_disk_that_cannot_be_written_does_not_end_training(tiny_configs, tmp_path, capsys):
    with writers.Writer(tmp_path, tiny_configs[0], 0) as writer:
        writer._file.close()
        writer._file = open("/dev/full", "w", buffering=1)
        for step in (1, 2):
            writer.write(step, {"loss": 1.0})
    assert capsys.readouterr().out.count("Metrics cannot be written") == 1


def test_wandb_gets_everything_if_it_is_installed(tiny_configs, tmp_path, monkeypatch):
    from PIL import Image

    with pytest.raises(ValueError, match="run.wandb must be empty where wandb is not installed"):
        monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
        writers.check_wandb("project")
    calls = []
    run = types.SimpleNamespace(
        log=lambda values: calls.append((values["step"], sorted(values))),
        finish=lambda: calls.append("finished"),
        define_metric=lambda name, step_metric: calls.append((name, step_metric)),
    )
    fake = types.SimpleNamespace(
        init=lambda **options: calls.append(options) or run, Image=lambda picture: picture
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = settings(tiny_configs[0], wandb="project")
    with writers.Writer(tmp_path / "run", config, 0) as writer:
        pass
    (tmp_path / "run").mkdir()
    calls.clear()
    with writers.Writer(tmp_path / "run", config, 0) as writer:
        writer.write(1, {"loss": 1.0})
        writer.picture(1, "samples", Image.new("RGB", (8, 8)))
    assert calls[0]["project"] == "project" and calls[0]["resume"] == "allow"
    assert calls[1:] == [("*", "step"), (1, ["loss", "step"]), (1, ["samples", "step"]), "finished"]
    first = calls[0]["id"]
    with writers.Writer(tmp_path / "run", config, 0):
        assert calls[5]["id"] == first  # the same run goes on

    def refuse(**options):
        raise RuntimeError("not logged in")

    fake.init = refuse
    with writers.Writer(tmp_path / "run", config, 1) as writer:
        writer.write(2, {"loss": 1.0})  # training goes on, and the metrics lie on the disk
    assert json.loads((tmp_path / "run" / writers.METRICS_FILE).read_text().splitlines()[-1])["step"] == 2


# --- watchdog -------------------------------------------------------------------------------------

STUCK = """
import time
from imagen_jax.training.stopping import Watchdog
with Watchdog(4) as watchdog:
    for _ in range(5):
        time.sleep(1)
        watchdog.alive()
    watchdog.rest()
    time.sleep(5)
    watchdog.alive()
    print("alive", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_process_that_is_stuck_ends_itself():
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and done.stdout == "alive\n"
    assert "Timeout" in done.stderr and "line 12 in <module>" in done.stderr
