"""Batches of two data sets in turn."""

import numpy as np
import pytest

from imagen_jax import sharding
from imagen_jax.data import pipeline, sources
from imagen_jax.training import prior
from tests.conftest import write_shapes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prior")
    named = {name: write_shapes(folder / name, train=num) for name, num in (("own", 3), ("prior", 7))}
    return {name: sources.open_source(directory, "train") for name, directory in named.items()}


def mixed(data, rows=slice(None)):
    def loader(name, mark):
        tokens = lambda numbers: [np.full((1, 2), 100 * mark + number, np.float32) for number in numbers]
        options = {"image_size": 8, "text_length": 1, "batch_size": 4, "seed": 1, "num_threads": 0, "rows": rows}
        return pipeline.make_loader(data[name], tokens, **options)

    return prior.Mixed(loader("own", 1), loader("prior", 2), len(data["own"]), 0.5)


def test_rows_alternate_and_have_their_weights(data):
    loader = mixed(data)
    batch = next(loader)
    assert batch["x"].shape == (8, 8, 8, 3) and batch["weight"].tolist() == [1, 0.5] * 4
    numbers = batch["text"][:, 0, 0]
    assert (numbers[::2] // 100 == 1).all() and (numbers[1::2] // 100 == 2).all()
    offsets = np.where(np.arange(8) % 2, 200 - 3, 100)
    assert loader.records(0) == (numbers - offsets).tolist() and max(loader.records(0)) > 2
    assert (batch["undecodable"] == -1).all()
    loader.close()


def test_a_position_continues_both(data):
    loader, again = mixed(data), mixed(data)
    for _ in range(2):
        next(loader)
    again.set_state(loader.get_state())
    assert loader.get_state() == {"next_index": 2}
    batch = next(again)
    for name, value in next(loader).items():
        np.testing.assert_array_equal(value, batch[name])
    loader.close()
    again.close()


def test_processes_have_their_rows_of_the_same_batch(data):
    mesh = sharding.make_mesh()
    half, whole = sharding.local_batch_indices(mesh, 8), sharding.local_batch_indices(mesh, 16)
    np.testing.assert_array_equal(whole, np.stack([2 * half, 2 * half + 1], axis=1).reshape(-1))
    loader, everything = mixed(data, rows=np.array([2, 3])), mixed(data)
    np.testing.assert_array_equal(next(loader)["text"], next(everything)["text"][4:8])
    loader.close()
    everything.close()


def test_replaced_records_of_the_prior_are_numbered_after_the_others(data, monkeypatch):
    loader, real = mixed(data), pipeline.Loader.__next__
    found = {id(loader._loaders[0]): np.full(4, -1), id(loader._loaders[1]): np.array([-1, 0, 2, -1])}
    replace = lambda self: real(self) | {"undecodable": found[id(self)]}
    monkeypatch.setattr(pipeline.Loader, "__next__", replace)
    assert next(loader)["undecodable"].tolist() == [-1, -1, -1, 3, -1, 5, -1, -1]
    loader.close()
