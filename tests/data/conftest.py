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
