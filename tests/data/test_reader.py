"""Rows of a batch from records: what cannot be read is replaced by the next usable record."""

import pickle

import numpy as np
import pytest

from imagen_jax.data import opening, pipeline, reader, sources, transforms
from imagen_jax.prepare.records import write_records
from tests.data.conftest import NUM, Memory, assert_equal, embeddings_of, ids, joined, load, wide


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
    with pytest.raises(ValueError, match="Record 4 of somewhere, split 'train' must be a picture; "):
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
    source.records = Latin(source.records, 9)

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
        4: "must be readable; it is not .*Riegeli",
        9: "must be readable; it is not .text that is not UTF-8",
        10: "must be a picture; it cannot be decoded",
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
        f"Record 0 of somewhere, split 'train' must be a picture; it cannot be decoded .* the {more} records after"
    )
    with pytest.raises(ValueError, match=message):
        load(Memory([b"not a picture"], num), 1, batch_size=1, shuffle=False)


def test_bad_embeddings_are_named(source):
    options = {"image_size": 8, "batch_size": 1, "text_length": 4, "seed": 0, "num_threads": 0}
    with pytest.raises(ValueError, match=r"got shape \(0, 3\) at index 0: make them again"):
        next(pipeline.make_loader(source, lambda numbers: [np.zeros((0, 3))], shuffle=False, **options))


def test_reader_can_be_pickled(source):
    batches = pipeline.BatchReader(source, embeddings_of, 8, 4, False, slice(0, 2))
    batch = pickle.loads(pickle.dumps(batches))(np.array([1, 2]), np.random.default_rng(0))
    assert ids([batch]).tolist() == [1, 2]
