"""Batches: the order and every draw depend on the seed and the step alone; resuming is exact."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import pipeline, sources, transforms

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
    sources.write({"train": records}, directory, name="toy", description="")
    return sources.open_source(directory, "train")


# A bound method of a dict can be pickled, as an embedding cache's can.
EMBED = {str(i): np.full((i % 5 + 1, 3), i, np.float32) for i in range(NUM)}.__getitem__


def load(source, num=None, state=None, **options):
    settings = {"image_size": 8, "batch_size": 6, "text_length": 4, "seed": 1, "num_threads": 0} | options
    loader = pipeline.make_loader(source, EMBED, **settings)
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
    }
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


@pytest.mark.parametrize("num_threads, num_workers", [(1, 0), (3, 0), (1, 2)])
def test_threads_and_workers_change_nothing(source, num_threads, num_workers):
    expected = load(source, 9, flip=True)
    options = {"flip": True, "num_threads": num_threads, "num_workers": num_workers}
    assert_equal(load(source, 9, **options), expected)
    assert_equal(load(source, 5, state={"next_index": 4}, **options), expected[4:])


@pytest.mark.parametrize("shard_count", [2, 3])
def test_hosts_take_blocks_of_the_global_batch(source, shard_count):
    expected = load(source, 7, flip=True)
    parts = [load(source, 7, flip=True, shard_index=i, shard_count=shard_count) for i in range(shard_count)]
    joined = [{k: np.concatenate([b[k] for b in step]) for k in step[0]} for step in zip(*parts, strict=True)]
    assert_equal(joined, expected)


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
    loader = pipeline.make_loader(source, EMBED, **options)
    for _ in range(5):  # into the second epoch
        next(loader)
    state = json.loads(json.dumps(loader.get_state()))
    expected = [next(loader) for _ in range(6)]
    fresh = pipeline.make_loader(source, EMBED, **options)
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
    halves = [load(source, 3, crop_size=4, shard_index=i, shard_count=2) for i in range(2)]
    joined = [
        {k: np.concatenate([b[k] for b in step]) for k in step[0]} for step in zip(*halves, strict=True)
    ]
    assert_equal(joined, load(source, 3, crop_size=4))
    with pytest.raises(ValueError, match="crop_size must be a multiple of crop_grid 4"):
        load(source, 1, crop_size=6, crop_grid=4)


def test_ordered_access(source):
    got = list(pipeline.examples(source, [3, 0]))
    assert [(e["caption"], e["claims"], e["image"][0, 0, 0]) for e in got] == [
        ("3", {"i": 3}, 6),
        ("0", {"i": 0}, 0),
    ]
    assert len(list(pipeline.examples(source))) == NUM
    batches = list(pipeline.eval_batches(source, image_size=4, batch_size=10))
    assert [len(b["x"]) for b in batches] == [10, 10, 3]
    assert [c for b in batches for c in b["caption"]] == [str(i) for i in range(NUM)]
    assert batches[2]["claims"][-1] == {"i": NUM - 1} and batches[0]["x"].shape == (10, 4, 4, 3)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size must be at least 1; got 0"),
        ({"shard_count": 4}, "multiple of shard_count; got 6 rows for 4"),
        ({"shard_index": 2, "shard_count": 2}, "shard_index must lie in"),
        ({"seed": -1}, "seed"),
        ({"num_threads": -1}, "num_threads"),
        ({"num_epochs": 1, "batch_size": 24}, "do not fill one batch of 24"),
        ({"num_epochs": 0}, "num_epochs=0"),
    ],
)
def test_bad_options_are_refused_at_once(source, options, message):
    with pytest.raises(ValueError, match=message):
        load(source, **options)


def test_bad_records_and_embeddings_are_named(source):
    class Broken:
        name = "somewhere, split 'train'"

        def read(self, indices):
            return [{"image": b"not a picture", "caption": "7"} for _ in indices]

        def __len__(self):
            return 4

    settings = {
        "image_size": 8,
        "batch_size": 1,
        "text_length": 4,
        "seed": 0,
        "shuffle": False,
        "num_threads": 0,
    }
    with pytest.raises(ValueError, match="Record 0 of somewhere, split 'train' cannot be decoded"):
        next(pipeline.make_loader(Broken(), EMBED, **settings))
    with pytest.raises(ValueError, match=r"embed\('0'\) gave shape \(0, 3\)"):
        next(pipeline.make_loader(source, lambda caption: np.zeros((0, 3)), **settings))


def encoded(array_or_image, form="PNG", **options):
    image = array_or_image if isinstance(array_or_image, Image.Image) else Image.fromarray(array_or_image)
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def test_decode_every_kind():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    np.testing.assert_array_equal(transforms.decode(encoded(grey)), grey[..., None].repeat(3, 2))
    deep = encoded(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(transforms.decode(deep), grey[..., None].repeat(3, 2))
    clear = Image.new("RGBA", (4, 3), (255, 0, 0, 0))
    assert (transforms.decode(encoded(clear)) == 255).all()
    half = Image.new("RGBA", (4, 3), (255, 0, 0, 128))
    np.testing.assert_allclose(transforms.decode(encoded(half))[0, 0], [255, 127, 127], atol=1)
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    assert (transforms.decode(encoded(palette)) == [0, 0, 255]).all()
    assert (transforms.decode(encoded(palette, transparency=1)) == 255).all()
    cmyk = transforms.decode(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG"))
    assert cmyk.shape == (16, 16, 3) and cmyk[0, 0, 0] < 60 and cmyk[0, 0, 2] > 180
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    rgb = grey[..., None].repeat(3, 2)
    turned = transforms.decode(encoded(rgb, exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(rgb, -1))


def test_undecodable_is_one_line():
    whole = encoded(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    for data in (
        b"",
        b"hello",
        whole[: len(whole) // 2],
        encoded(np.zeros((4, 4), np.float32), "TIFF"),
    ):
        with pytest.raises(ValueError, match="^Record 3 cannot be decoded as a picture: .") as caught:
            transforms.decode(data, "Record 3")
        assert "\n" not in str(caught.value)


def test_square():
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 255
    assert (transforms.center_crop_square(wide) == 255).all()
    for size in (4, 8, 12):  # down, same, up
        x = transforms.square(encoded(wide), size)
        assert x.shape == (size, size, 3) and x.dtype == np.float32 and (x == 1).all()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_large_pictures_shrink_early_with_the_same_result(form):
    x = np.zeros((500, 700, 3), np.uint8)
    x[...] = np.linspace(0, 255, 700).astype(np.uint8)[:, None]
    x[100:300, 200:400] = [200, 30, 90]
    data = encoded(x, form, quality=95)
    early = transforms.square(data, 32)
    full = transforms.center_crop_square(transforms.decode(data)).astype(np.float32)
    exact = transforms.to_unit(transforms.resize.area(full, 32))
    assert abs(early - exact).mean() < 0.01


def test_unit_range_round_trip():
    x = np.arange(256, dtype=np.uint8)
    unit = transforms.to_unit(x)
    assert unit.min() == -1 and unit.max() == 1 and unit.dtype == np.float32
    np.testing.assert_array_equal(transforms.from_unit(unit), x)


def test_reader_can_be_pickled(source):
    reader = pipeline.BatchReader(source, EMBED, 8, 4, False, slice(0, 2))
    batch = pickle.loads(pickle.dumps(reader))(np.array([1, 2]), np.random.default_rng(0))
    assert ids([batch]).tolist() == [1, 2]
