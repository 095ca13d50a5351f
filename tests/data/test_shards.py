"""Record files of a data set: what is written is read, in order and to the bit."""

import json

import numpy as np
import pytest

from imagen_jax.data import shards, sources, transforms
from imagen_jax.prepare import output
from imagen_jax.prepare.records import write_records


def record(i, claims=False):
    image = transforms.encode_png(np.full((4, 4, 3), i % 256, np.uint8))
    example = {"image": image, "caption": f"número {i}"}
    return example | {"claims": json.dumps({"i": i})} if claims else example


def write(directory, num=5, claims=False):
    splits = {"train": (record(i, claims) for i in range(num)), "test": [record(99, claims)]}
    return write_records(splits, directory, name="toy", description="Toy.")


@pytest.mark.parametrize("claims", [False, True])
def test_round_trip_keeps_order_and_bytes(tmp_path, monkeypatch, claims):
    monkeypatch.setattr(output, "JOINED_RECORDS", 70)
    monkeypatch.setattr(shards.SplitWriter.__init__, "__defaults__", (70, 2**30))
    assert write(tmp_path / "a", 200, claims) == {"train": 200, "test": 1}
    assert len(list((tmp_path / "a").glob("toy-train.array_record-*"))) == 3
    source = sources.open_source(tmp_path / "a", "train")
    assert [source[i] for i in range(len(source))] == [record(i, claims) for i in range(200)]
    assert source[-1] == record(199, claims) and source.read([7, 0]) == [source[7], source[0]]
    assert list(sources.captions(source)) == [f"número {i}" for i in range(200)]
    assert len(sources.open_source(tmp_path / "a", "train[:10]")) == 10
    with pytest.raises(IndexError):
        source[200]


def test_plain_tfds_reads_it(tmp_path):
    import tensorflow_datasets as tfds

    write(tmp_path / "a")
    builder = tfds.builder_from_directory(str(tmp_path / "a"))
    assert builder.info.splits["train"].num_examples == 5
    decoders = {"image": tfds.decode.SkipDecoding()}
    first = builder.as_data_source("train", decoders=decoders)[0]
    assert first["image"] == record(0)["image"]
