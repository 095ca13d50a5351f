"""Data sets of records in memory: written whole or not at all; wrong records are refused."""

import os

import numpy as np
import pytest

from imagen_jax.data import transforms
from imagen_jax.prepare.records import write_records


def record(i, claims=False):
    image = transforms.encode_png(np.full((4, 4, 3), i % 256, np.uint8))
    example = {"image": image, "caption": f"número {i}"}
    return example | {"claims": "{}"} if claims else example


def write(directory, num=5):
    return write_records(
        {"train": (record(i) for i in range(num))}, directory, name="toy", description="Toy."
    )


def test_failure_leaves_nothing(tmp_path):
    def broken():
        yield record(0)
        raise RuntimeError("disk on fire")

    with pytest.raises(RuntimeError, match="disk on fire"):
        write_records({"train": broken()}, tmp_path / "a", name="toy", description="")
    assert list(tmp_path.iterdir()) == []


def test_existing_data_is_never_touched(tmp_path):
    write(tmp_path / "a")
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    with pytest.raises(ValueError, match="must be free; got a data set.*delete this one first"):
        write(tmp_path / "a", 9)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not empty"):
        write(tmp_path / "b")
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize(
    "examples, message",
    [
        ({"train": []}, "Split 'train' must have records; got none"),
        ({}, "at least one split"),
        ({"Train 1": [record(0)]}, "Names of splits .*'Train 1'"),
        ({"all": [record(0)]}, "not 'all'"),
        ({"train": [record(0), {"image": b"x"}]}, "Record 1 of split 'train' must have the keys image and"),
        ({"train": [record(0) | {"image": "a.png"}]}, "image must be encoded bytes"),
        ({"train": [record(0) | {"caption": " "}]}, "caption must not be empty"),
        ({"train": [record(0), record(1, claims=True)]}, "in all records or in none"),
    ],
)
def test_bad_records_are_refused(tmp_path, examples, message):
    with pytest.raises(ValueError, match=message):
        write_records(examples, tmp_path / "a", name="toy", description="")
    assert list(tmp_path.iterdir()) == []
