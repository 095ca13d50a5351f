"""What a run says about itself: metrics, validation, samples, the files they go to, and the watchdog."""

import dataclasses

import jax
import numpy as np
import pytest

from imagen_jax import sharding
from imagen_jax.config import RunConfig
from imagen_jax.data import sources, transforms
from imagen_jax.prepare import shapes
from imagen_jax.prepare.records import write_records
from imagen_jax.training import monitor as monitors
from imagen_jax.training import state as states


def settings(config, **run):
    return dataclasses.replace(config, run=dataclasses.replace(RunConfig(), **run))


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


def evaluate(stage, source, num_devices=1, **run):
    """The monitor, the state, its values at step 4 and its pictures: none, unless `run` has sample_every."""
    config = settings(stage.config, **{"validate_every": 2, "sample_every": 0, "sample_images": 3} | run)
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
    monitor, state, values, writer = evaluate(tiny_stages[index], source, sample_every=4)
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
    _, _, values, _ = evaluate(loud, source)
    assert abs(values["caption_gap"]) > 2e-5
    assert values["caption_gap"] == pytest.approx(
        values["validation_loss_shuffled"] / values["validation_loss"] - 1
    )
    monkeypatch.setattr(Embeddings, "__getitem__", lambda self, caption: np.ones((2, 12), "float32"))
    _, _, values, _ = evaluate(loud, source)
    assert abs(values["caption_gap"]) < 1e-6


@pytest.mark.slow
def test_broken_records_are_counted_and_a_single_picture_has_no_other_caption(tiny_stages, source, tmp_path):
    records = [source[i] for i in range(8)]
    records[2]["image"] = b"no picture"
    write_records({"validation": records}, tmp_path / "data", name="data", description="Eight.")
    damaged = sources.open_source(tmp_path / "data", "validation")
    _, _, values, _ = evaluate(tiny_stages[0], damaged)
    assert values["validation_undecodable"] == 1 and "caption_gap" in values
    few = sources.open_source(tmp_path / "data", "validation[:4]")  # half as many as stand in a batch
    _, _, values, _ = evaluate(tiny_stages[0], few)
    assert values["caption_gap"] != 0
    optim = dataclasses.replace(tiny_stages[0].config.optim, batch_size=1)
    single = dataclasses.replace(tiny_stages[0].config, optim=optim)
    _, _, values, _ = evaluate(tiny_stages[0].replace(config=single), damaged)
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
        monitors.Monitor, "_run", lambda self, _, params, text, low_res, null: np.zeros((len(text.mask), 8, 8, 3))
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
