"""Batches: the order and every draw depend on the seed and the step alone; resuming is exact."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.data import pipeline
from tests.data.conftest import NUM, Memory, assert_equal, embeddings_of, ids, joined, load, wide


def test_batch_contents(source):
    (batch,) = load(source, 1, shuffle=False)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "x": ((6, 8, 8, 3), np.float32),
        "text": ((6, 4, 3), np.float32),
        "text_mask": ((6, 4), bool),
        "undecodable": ((6,), np.int64),
    }
    assert (batch["undecodable"] == -1).all()
    for i in range(6):
        length = min(i % 5 + 1, 4)  # five tokens are cut to four
        np.testing.assert_array_equal(batch["text_mask"][i], np.arange(4) < length)
        np.testing.assert_array_equal(batch["text"][i], i * batch["text_mask"][i][:, None].repeat(3, 1))
        np.testing.assert_allclose(batch["x"][i, :, :4], 2 * i / 127.5 - 1, atol=1e-6)


def test_each_epoch_has_each_record_once_in_a_new_order(source):
    order = ids(load(source, num_epochs=3, batch_size=NUM)).reshape(3, NUM)
    assert (np.sort(order) == np.arange(NUM)).all()
    assert len({tuple(epoch) for epoch in order}) == 3 and (order[0] != np.arange(NUM)).any()
    assert (ids(load(source, num_epochs=3, batch_size=NUM, seed=2)).reshape(3, NUM)[0] != order[0]).any()


def test_batches_span_epochs_and_may_exceed_the_data(source):
    order = ids(load(source, num_epochs=4, batch_size=30))
    assert len(order) == 90  # 92 records, the last 2 left out
    np.testing.assert_array_equal(order, ids(load(source, num_epochs=4, batch_size=5))[:90])


@pytest.mark.slow
@pytest.mark.parametrize("num_threads, num_workers", [(1, 0), (3, 0), (1, 2)])
def test_threads_and_workers_change_nothing(source, num_threads, num_workers):
    expected = load(source, 9, flip=True, crop="aspect")
    options = {"flip": True, "crop": "aspect", "num_threads": num_threads, "num_workers": num_workers}
    assert_equal(load(source, 9, **options), expected)
    assert_equal(load(source, 5, state={"next_index": 4}, **options), expected[4:])


@pytest.mark.parametrize("shard_count", [2, 3, 6])
def test_hosts_take_blocks_of_the_global_batch(source, shard_count):
    assert_equal(joined(source, 7, shard_count, flip=True), load(source, 7, flip=True))


@pytest.mark.parametrize("num_threads", [0, 2])
def test_resuming_is_exact(source, num_threads):
    options = {
        "image_size": 8,
        "batch_size": 6,
        "text_length": 4,
        "seed": 1,
        "flip": True,
        "num_threads": num_threads,
    }
    loader = pipeline.make_loader(source, embeddings_of, **options)
    for _ in range(5):  # into the second epoch
        next(loader)
    state = json.loads(json.dumps(loader.get_state()))
    expected = [next(loader) for _ in range(6)]
    fresh = pipeline.make_loader(source, embeddings_of, **options)
    fresh.set_state(state)
    assert fresh.get_state() == state
    assert_equal([next(fresh) for _ in range(6)], expected)
    loader.set_state(state)  # rewinding a running loader
    assert_equal([next(loader) for _ in range(6)], expected)
    loader.close()
    fresh.close()
    with pytest.raises(ValueError, match="next_index"):
        loader.set_state({"step": 3})


def test_flips_are_fresh_in_each_epoch(source):
    assert all((b["x"][:, :, 4:] > 0.5).all() for b in load(source, 4))  # off unless asked for
    x = np.concatenate([b["x"] for b in load(source, num_epochs=8, batch_size=NUM, flip=True)])
    flipped = (x[:, 0, 0, 0] > 0.5).reshape(8, NUM)
    assert 0.35 < flipped.mean() < 0.65 and len({tuple(row) for row in flipped}) == 8


def test_crops_lie_on_the_grid_and_are_the_same_on_every_host(source):
    """Columns 0 to 3 of a picture are dark, so that a crop of 4 shows where it began."""
    options = {"crop_size": 4, "crop_grid": 2, "num_epochs": 8, "batch_size": NUM, "shuffle": False}
    x = np.concatenate([b["x"] for b in load(source, **options)])
    assert x.shape == (8 * NUM, 4, 4, 3)
    bright = (x[:, 0, :, 0] > 0.5).sum(axis=1)  # 0, 2 or 4 columns: crops begin at column 0, 2 or 4
    assert set(bright) == {0, 2, 4} and all((bright == n).mean() > 0.2 for n in (0, 2, 4))
    assert_equal(joined(source, 3, 2, crop_size=4), load(source, 3, crop_size=4))
    with pytest.raises(ValueError, match="crop_size must be a multiple of crop_grid 4"):
        load(source, 1, crop_size=6, crop_grid=4)


def columns_of(batches):
    x = np.concatenate([batch["x"] for batch in batches])
    np.testing.assert_array_equal(x, x[:, :1].repeat(x.shape[1], 1))  # rows are alike
    return (x[:, 0, :, 0] + 1) * 12.75


def test_random_crops_lie_anywhere_along_the_longer_side():
    columns = columns_of(load(wide(100), 20, batch_size=100, crop="random"))
    starts = columns[:, 0].round().astype(int)
    np.testing.assert_allclose(columns, starts[:, None] + np.arange(8), atol=1e-4)
    counts = np.bincount(starts, minlength=17)  # of 2000 in 17 places: 118 each, standard deviation 10.5
    assert len(counts) == 17 and counts.min() > 70 and counts.max() < 170
    mirrored = columns_of(load(wide(100), 20, batch_size=100, crop="random", flip=True))
    backwards = mirrored[:, 0] > mirrored[:, 1]
    np.testing.assert_allclose(np.where(backwards[:, None], mirrored[:, ::-1], mirrored), columns, atol=1e-4)
    assert 0.4 < backwards.mean() < 0.6
    centre = columns_of(load(wide(100), 1, crop="center"))
    np.testing.assert_allclose(centre, np.broadcast_to(8 + np.arange(8.0), centre.shape), atol=1e-4)


def test_aspect_crops_are_squeezed_to_a_square():
    columns = columns_of(load(wide(100), 5, batch_size=100, crop="aspect"))
    inside = columns[:, 1:-1]  # bilinear interpolation clamps at the edges
    steps = np.diff(inside).mean(1)  # old pixels for each new one: windows are 4 to 11 wide
    assert 4 / 8 - 0.01 < steps.min() < 0.7 and 1.2 < steps.max() < 11 / 8 + 0.01
    assert columns.min() < 0.5 and columns.max() > 22.5


@pytest.mark.parametrize("options", [{"crop": "random"}, {"crop": "aspect", "crop_size": 4, "crop_grid": 2}])
def test_crops_depend_on_seed_and_step_alone(options):
    options = {"batch_size": 8, "flip": True} | options
    expected = load(wide(40), 6, **options)
    for shard_count in (2, 8):
        assert_equal(joined(wide(40), 6, shard_count, **options), expected)
    assert_equal(load(wide(40), 3, state={"next_index": 3}, num_threads=2, **options), expected[3:])
    assert (load(wide(40), 1, **(options | {"seed": 2}))[0]["x"] != expected[0]["x"]).any()
    with pytest.raises(ValueError, match="crop must be one of center, random, aspect; got 'top'"):
        load(wide(), crop="top")


def test_crops_change_neither_order_nor_flips_nor_corners(source):
    options = {"flip": True, "crop_size": 4, "crop_grid": 2}
    plain, random = load(source, 5, **options), load(source, 5, crop="random", **options)
    assert_equal(plain, random)  # the pictures are square


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_records_read():
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    options = {"image_size": 8, "batch_size": 500, "text_length": 4, "seed": 1, "num_threads": 1}
    source = Memory(wide().images, 10**9)
    loader = pipeline.make_loader(source, embeddings_of, crop="aspect", **options)
    for i in range(100):
        next(loader)
        if i == 19:
            before = resident()
    loader.close()
    assert resident() - before < 8 * 2**20  # 40,000 records later; their pictures alone are 30 MB


def test_ordered_access(source):
    got = list(pipeline.examples(source, [3, 0]))
    assert [(e["caption"], e["claims"], e["image"][0, 0, 0]) for e in got] == [
        ("3", {"i": 3}, 6),
        ("0", {"i": 0}, 0),
    ]
    assert len(list(pipeline.examples(source))) == NUM


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"seed": -1}, "seed"),
        ({"num_threads": -1}, "num_threads"),
        ({"num_epochs": 1, "batch_size": 24}, "num_epochs must fill one batch of 24"),
        ({"num_epochs": 0}, "num_epochs must fill .*; got 0"),
    ],
)
def test_bad_options_are_refused_at_once(source, options, message):
    with pytest.raises(ValueError, match=message):
        load(source, **options)
