"""The data sets of a run, and the text by which hosts tell them apart."""

import pytest

from imagen_jax.data import sources
from imagen_jax.training import inputs
from tests.conftest import write_shapes


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_shapes(tmp_path_factory.mktemp("inputs") / "data", train=6, validation=3)


def test_data_sets_have_different_signatures(data):
    found = [inputs.signature(sources.open_source(data, split)) for split in ("train", "train[:5]", "validation")]
    assert len(set(found)) == 3 and found[0].startswith("6 records from ")
    assert inputs.signature(None) == "none"


def test_a_last_record_that_cannot_be_read_has_no_caption(data, monkeypatch):
    source = sources.open_source(data, "train")
    expected = inputs.signature(source)
    monkeypatch.setattr(type(source), "__getitem__", lambda self, i: 1 / 0)
    damaged = inputs.signature(source)
    assert damaged != expected and damaged.endswith("to ''")
