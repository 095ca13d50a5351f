"""A data set of 23 small pictures, and batches of it."""


import json

import numpy as np
import pytest

from imagen_jax.data import pipeline, sources, transforms
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


def joined(source, num, shard_count, **options):
    """The batches of all hosts, put together."""
    blocks = np.arange(options.get("batch_size", 6)).reshape(shard_count, -1)
    parts = [load(source, num, rows=rows, **options) for rows in blocks]
    return [{k: np.concatenate([b[k] for b in step]) for k in step[0]} for step in zip(*parts, strict=True)]


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
