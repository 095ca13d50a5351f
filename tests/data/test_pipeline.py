"""Batches: the order and every draw depend on the seed and the step alone; resuming is exact."""

import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.data import opening, pipeline, reader, sources, transforms
from imagen_jax.prepare.records import write_records

NUM = 23


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Record i: left half of value 2i, right half of 200, so that flips show."""
    directory = tmp_path_factory.mktemp("data") / "toy"

    def record(i):
        image = np.full((8, 8, 3), 200, np.uint8)
        image[:, :4] = 2 * i
        claims = json.dumps({"i": i})
        return {"image": transforms.encode_png(image), "caption": str(i), "claims": claims}

    records = (record(i) for i in range(NUM))
    write_records({"train": records}, directory, name="toy", description="")
    return sources.open_source(directory, "train")


def embeddings_of(numbers):
    return [np.full((i % NUM % 5 + 1, 3), i % NUM, np.float32) for i in numbers]


def load(source, num=None, state=None, embeddings=embeddings_of, **options):
    settings = {"image_size": 8, "batch_size": 6, "text_length": 4, "seed": 1, "num_threads": 0} | options
    loader = pipeline.make_loader(source, embeddings, **settings)
    if state is not None:
        loader.set_state(state)
    batches = list(loader) if num is None else [next(loader) for _ in range(num)]
    loader.close()
    return batches


def ids(batches):
    return np.concatenate([batch["text"][:, 0, 0] for batch in batches]).astype(int)


def assert_equal(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key in batch:
            np.testing.assert_array_equal(batch[key], other[key])


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


def joined(source, num, shard_count, **options):
    """The batches of all hosts, put together."""
    parts = [load(source, num, shard_index=i, shard_count=shard_count, **options) for i in range(shard_count)]
    return [{k: np.concatenate([b[k] for b in step]) for k in step[0]} for step in zip(*parts, strict=True)]


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


class Memory:
    """Records from a list of pictures; record i has caption str(i % NUM)."""

    name = "somewhere, split 'train'"

    def __init__(self, images, count=None):
        self.images, self.count = images, count or len(images)

    def __len__(self):
        return self.count

    def read(self, indices):
        return [
            {"image": self.images[i % len(self.images)], "caption": str(i % NUM)} for i in map(int, indices)
        ]


def wide(num=1):
    """8 x 24 pixels; column c has the value 10c, so that a crop shows where it began."""
    columns = np.arange(24, dtype=np.uint8)[:, None].repeat(3, 1) * 10
    return Memory([transforms.encode_png(np.broadcast_to(columns, (8, 24, 3)))], num)


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


def test_the_next_picture_that_can_be_decoded_stands_in_for_a_broken_one():
    images = [transforms.encode_png(np.full((8, 8, 3), 10 * i, np.uint8)) for i in range(NUM)]
    broken = {4: b"not a picture", 5: images[5][:50], NUM - 1: b"", 10: images[10][:40]}
    source = Memory([broken.get(i, image) for i, image in enumerate(images)])
    (batch,) = load(source, 1, batch_size=NUM, shuffle=False)
    expected = {i: i for i in range(NUM)} | {4: 6, 5: 6, 10: 11, NUM - 1: 0}
    assert ids([batch]).tolist() == list(expected.values())
    np.testing.assert_allclose((batch["x"][:, 0, 0, 0] + 1) * 12.75, list(expected.values()), atol=1e-4)
    assert batch["undecodable"].tolist() == [i if i in broken else -1 for i in range(NUM)]
    options = {"crop": "aspect", "flip": True}
    batches = load(source, 12, **options)
    assert set(np.concatenate([b["undecodable"] for b in batches])) == {-1, *broken}
    assert_equal(joined(source, 12, 3, **options), batches)
    assert_equal(load(source, 7, state={"next_index": 5}, num_threads=2, **options), batches[5:])
    with pytest.raises(ValueError, match="Record 4 of somewhere, split 'train' cannot be decoded"):
        list(pipeline.examples(source))


def test_a_damaged_file_and_captions_beyond_utf8_are_replaced_as_damaged_pictures_are(tmp_path):
    """Record 4 has a damaged chunk, 9 a caption that is not UTF-8, 10 half a picture."""
    images = [transforms.encode_png(np.full((8, 8, 3), 10 * i, np.uint8)) for i in range(NUM)]
    images[10] = images[10][:40]
    records = ({"image": image, "caption": f"{i} and more"} for i, image in enumerate(images))
    write_records({"train": records}, tmp_path / "toy", name="toy", description="")
    (file,) = (tmp_path / "toy").glob("*array_record*")
    content = bytearray(file.read_bytes())
    content[content.index(images[4]) + 20] ^= 255
    file.write_bytes(content)
    source = sources.open_source(tmp_path / "toy")
    source._records = Latin(source._records, 9)

    batch = pipeline.BatchReader(source, embeddings_of, 8, 4, False, slice(0, NUM))
    batch = batch(np.arange(NUM), np.random.default_rng(0))
    expected = [{4: 5, 9: 11, 10: 11}.get(i, i) for i in range(NUM)]
    assert ids([batch]).tolist() == expected
    np.testing.assert_allclose((batch["x"][:, 0, 0, 0] + 1) * 12.75, expected, atol=1e-4)
    assert batch["undecodable"].tolist() == [i if i in (4, 9, 10) else -1 for i in range(NUM)]

    whole = load(source, 8)
    assert_equal(load(source, 8, num_threads=2), whole)
    assert_equal(joined(source, 8, 2), whole)

    damage = {
        4: "cannot be read: .*Riegeli",
        9: "cannot be read: text that is not UTF-8",
        10: "cannot be decoded",
    }
    for index, words in damage.items():
        message = f"^Record {index} of .*, split 'train' {words}"
        with pytest.raises(ValueError, match=message) as caught:
            list(pipeline.examples(source, [index]))
        assert type(caught.value) is opening.UndecodableError


class Latin:
    """The raw records of a data set, of which one has a caption that is not UTF-8."""

    def __init__(self, records, number):
        self.records, self.number = records, number

    def __len__(self):
        return len(self.records)

    def __getitems__(self, indices):
        records = self.records.__getitems__(indices)
        return [
            record | {"caption": b"\xff" + record["caption"]} if i == self.number else record
            for i, record in zip(indices, records, strict=True)
        ]


def test_an_embedding_that_is_missing_is_no_damaged_record():
    def nothing(numbers):
        raise KeyError(numbers)

    with pytest.raises(KeyError):
        load(Memory(wide().images, NUM + 1), 1, batch_size=1, shuffle=False, embeddings=nothing)


def test_usable_records_come_in_order_as_many_as_there_are():
    images = [transforms.encode_png(np.full((8, 8, 3), 10 * i, np.uint8)) for i in range(5)]
    images[0] = images[3] = b"not a picture"
    records, x = reader.usable(Memory(images), 2, 4)
    assert [*records] == [1, 2] and x.shape == (2, 4, 4, 3) and x.dtype == np.float32
    records, x = reader.usable(Memory(images), 8, 4)
    assert {number: r["caption"] for number, r in records.items()} == {1: "1", 2: "2", 4: "4"}
    np.testing.assert_allclose((x[:, 0, 0, 0] + 1) * 12.75, [1, 2, 4], atol=1e-4)
    for num, more in ((4, 3), (500, 100)):
        with pytest.raises(ValueError, match=f"Record 0 of somewhere.* the {more} records after"):
            reader.usable(Memory([b"not a picture"], num), 2, 4)


@pytest.mark.parametrize("num, more", [(4, 3), (500, 100)])
def test_a_data_set_without_pictures_ends_the_run(num, more):
    message = (
        f"Record 0 of somewhere, split 'train' cannot be decoded as a picture: .* the {more} records after"
    )
    with pytest.raises(ValueError, match=message):
        load(Memory([b"not a picture"], num), 1, batch_size=1, shuffle=False)


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
        ({"shard_count": 4}, "multiple of shard_count; got 6 rows for 4"),
        ({"shard_index": 2, "shard_count": 2}, "shard_index must lie in"),
        ({"seed": -1}, "seed"),
        ({"num_threads": -1}, "num_threads"),
        ({"num_epochs": 1, "batch_size": 24}, "num_epochs must fill one batch of 24"),
        ({"num_epochs": 0}, "num_epochs must fill .*; got 0"),
    ],
)
def test_bad_options_are_refused_at_once(source, options, message):
    with pytest.raises(ValueError, match=message):
        load(source, **options)


def test_bad_embeddings_are_named(source):
    options = {"image_size": 8, "batch_size": 1, "text_length": 4, "seed": 0, "num_threads": 0}
    with pytest.raises(ValueError, match=r"got shape \(0, 3\) at index 0: make them again"):
        next(pipeline.make_loader(source, lambda numbers: [np.zeros((0, 3))], shuffle=False, **options))


def test_reader_can_be_pickled(source):
    batches = pipeline.BatchReader(source, embeddings_of, 8, 4, False, slice(0, 2))
    batch = pickle.loads(pickle.dumps(batches))(np.array([1, 2]), np.random.default_rng(0))
    assert ids([batch]).tolist() == [1, 2]
