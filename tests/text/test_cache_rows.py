"""Rows of a data set know their embeddings, and are made again where the data has changed."""

import errno
import os
import pathlib
import pickle

import numpy as np
import pytest

from imagen_jax.data import shards, sources, transforms
from imagen_jax.prepare.records import write_records
from tests.text.conftest import CAPTIONS, SHORT, Counting, make

PICTURE = transforms.encode_png(np.zeros((8, 8, 3), np.uint8))


def test_a_complete_cache_needs_no_writing(tiny, data, tmp_path, monkeypatch):
    make(CAPTIONS, tiny, tmp_path)
    (tmp_path / tiny.fingerprint / "share-0-of-2-old.unfinished").touch()
    real = pathlib.Path.open

    def refused(path, mode="r", *args, **options):
        if mode in ("r", "rb"):
            return real(path, mode, *args, **options)
        raise PermissionError(errno.EACCES, "read-only")

    with monkeypatch.context() as patch:  # root may write anywhere
        patch.setattr(pathlib.Path, "open", refused)
        patch.setattr(pathlib.Path, "unlink", lambda path, **_: refused(path, "w"))
        cache = make(CAPTIONS, tiny, tmp_path, sources=[data])
        assert len(cache) == len(CAPTIONS)
        np.testing.assert_array_equal(cache.rows(data)([1])[0], cache[CAPTIONS[1]])
    assert not [*(tmp_path / tiny.fingerprint).glob("rows-*")]


# --- rows of a data set ---------------------------------------------------------------------------


def write_data(directory, captions):
    """Write a data set whose record files have five records each."""
    directory.mkdir()
    writer = shards.SplitWriter(lambda i: directory / shards.file_name("data", "train", i), max_records=5)
    for caption in captions:
        writer.add(shards.encode({"image": PICTURE, "caption": caption}))
    writer.close()
    shards.write_metadata(directory, "data", "Black.", ["image", "caption"], {"train": writer.shards})
    return sources.open_source(directory)


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data", CAPTIONS * 2)


def read_captions(monkeypatch):
    """A list to which the captions are added that are read from now on."""
    read, real = [], sources.numbered_captions

    def numbered(source, numbers, size=1024):
        for part, captions in real(source, numbers, size):
            read.extend(captions)
            yield part, captions

    monkeypatch.setattr(sources, "numbered_captions", numbered)
    return read


def assert_rows(cache, source, captions):
    rows = pickle.loads(pickle.dumps(cache.rows(source)))
    numbers = np.random.default_rng(0).permutation(len(captions)).tolist()
    for number, row in zip(numbers, rows(numbers), strict=True):
        np.testing.assert_array_equal(row, cache[captions[number]])


def test_rows_are_stored_and_captions_not_read_again(tiny, data, tmp_path, monkeypatch):
    encoder = Counting(tiny)
    cache = make(["a prompt"], encoder, tmp_path / "cache", sources=[data])
    assert sorted(encoder.embedded) == sorted(["a prompt", *CAPTIONS])
    read = read_captions(monkeypatch)
    assert_rows(cache, data, CAPTIONS * 2)
    part = sources.open_source(tmp_path / "data", "train[3:13]")
    assert_rows(make([], tiny, tmp_path / "cache", sources=[data, part]), part, (CAPTIONS * 2)[3:13])
    assert not read


def test_rows_of_a_slice_are_completed_by_the_whole(tiny, data, tmp_path, monkeypatch):
    part = sources.open_source(tmp_path / "data", "train[3:7]")
    cache = make([], tiny, tmp_path / "cache", sources=[part])
    assert len(cache) == 4
    with pytest.raises(ValueError, match="must hold every caption; got none for 'a red cat'"):
        cache.rows(data)
    read = read_captions(monkeypatch)
    cache = make([], tiny, tmp_path / "cache", sources=[data])
    assert len(read) == len(CAPTIONS) * 2 - 4
    assert_rows(cache, part, CAPTIONS[3:7])
    assert_rows(cache, data, CAPTIONS * 2)
    assert len(read) == len(CAPTIONS) * 2 - 4


def test_rows_of_a_data_set_that_has_changed_are_made_again(tiny, data, tmp_path, monkeypatch):
    make([], tiny, tmp_path / "cache", sources=[data])
    write_data(tmp_path / "other", CAPTIONS[::-1] * 2)
    for path, _, _ in data.files[:2]:
        path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    data = sources.open_source(tmp_path / "data")
    read, encoder = read_captions(monkeypatch), Counting(tiny)
    cache = make([], encoder, tmp_path / "cache", sources=[data])
    assert read == (CAPTIONS[::-1] * 2)[:10] and not encoder.embedded
    assert_rows(cache, data, (CAPTIONS[::-1] * 2)[:10] + (CAPTIONS * 2)[10:])


def test_a_data_set_that_grows_is_read_where_it_is_new(tiny, data, tmp_path, monkeypatch):
    make([], tiny, tmp_path / "cache", sources=[data])
    new = [f"{caption} right" for caption in SHORT]
    write_data(tmp_path / "grown", (CAPTIONS * 2)[:15] + new)
    for path, _, _ in data.files[:3]:
        os.utime(path, (1, 1))
        os.replace(path, tmp_path / "grown" / path.name)
    grown = sources.open_source(tmp_path / "grown")
    make([], tiny, tmp_path / "cache", sources=[grown])  # the times are others
    read, encoder = read_captions(monkeypatch), Counting(tiny)
    last = grown.files[-1][0]
    os.utime(last, (2, 2))
    cache = make([], encoder, tmp_path / "cache", sources=[grown])
    assert read == new and not encoder.embedded
    assert_rows(cache, grown, (CAPTIONS * 2)[:15] + new)


def test_a_record_that_cannot_be_read_has_no_embedding(tiny, data, tmp_path):
    path = data.files[0][0]
    content = bytearray(path.read_bytes())
    content[content.index(b"a blue cat")] ^= 1
    path.write_bytes(content)
    rows = make([], tiny, tmp_path / "cache", sources=[data]).rows(data)
    assert len(rows([0, 1, 3])) == 3
    with pytest.raises(
        ValueError, match="record 2 of .*, split 'train' must have an embedding; its caption could"
    ):
        rows([0, 2])


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-20], lambda content: b"x" * 99]
)
def test_damaged_rows_are_made_again(tiny, data, tmp_path, damage):
    make([], tiny, tmp_path / "cache", sources=[data])
    for path in (tmp_path / "cache").glob("*/rows-*"):
        path.write_bytes(damage(path.read_bytes()))
    cache = make([], tiny, tmp_path / "cache", sources=[data])
    assert_rows(cache, data, CAPTIONS * 2)
    with np.load(path) as content:
        assert len(content["locations"]) > 0


def test_rows_of_another_text_feature_are_not_mixed_up(tiny, tmp_path):
    record = {"image": PICTURE, "caption": SHORT[0], "claims": SHORT[1]}
    write_records({"train": [record]}, tmp_path / "data", name="data", description="Black.")
    source = sources.open_source(tmp_path / "data")
    other = sources.open_source(tmp_path / "data", caption_key="claims")
    for each, caption in ((source, SHORT[0]), (other, SHORT[1]), (source, SHORT[0])):
        assert_rows(make([], tiny, tmp_path / "cache", sources=[each]), each, [caption])
