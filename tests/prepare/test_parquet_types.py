"""Types of Arrow that hold pictures and captions."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.prepare.conftest import png, prepared, table

# ---- parquet ----

TWO = [png(0), png(1)]
TYPES = {
    "dictionary of pictures": {"image": pa.array(TWO).dictionary_encode(), "caption": ["a", "b"]},
    "dictionary in a struct": {
        "image": pa.StructArray.from_arrays([pa.array(TWO).dictionary_encode()], ["bytes"]),
        "caption": ["a", "b"],
    },
    "dictionary of captions": {"image": TWO, "caption": pa.array(["a", "b"]).dictionary_encode()},
    "lists of a dictionary": {
        "image": TWO,
        "caption": pa.ListArray.from_arrays([0, 1, 2], pa.array(["a", "b"]).dictionary_encode()),
    },
    "fixed size": {"image": pa.array([png(0), png(0)], pa.binary(len(png(0)))), "caption": ["a", "b"]},
    "views": {"image": pa.array(TWO, pa.binary_view()), "caption": pa.array(["a", "b"], pa.string_view())},
    "large": {"image": pa.array(TWO, pa.large_binary()), "text": pa.array(["a", "b"], pa.large_string())},
    "JSON type": {"image": TWO, "caption": pa.array(["a", "b"], pa.json_())},
    "LAION": {"URL": ["u", "v"], "TEXT": ["a", "b"], "Image": TWO},
    "HF in capitals": {"IMG": [{"bytes": x, "path": "p"} for x in TWO], "Caption ": ["a", "b"]},
    "next column of captions": {"image": TWO, "caption": ["a", None], "text": [None, "b"]},
    "blank is next": {"image": TWO, "caption": ["\u200b", "b"], "TEXT": ["a", "no"]},
    "lists are next": {"image": TWO, "caption": [[], [None]], "text": ["a", "b"]},
    "next column of pictures": {"image": [TWO[0], None], "jpg": [None, TWO[1]], "caption": ["a", "b"]},
    "no type for captions": {"image": TWO, "caption": pa.nulls(2), "text": ["a", "b"]},
    "no type for pictures": {"image": pa.nulls(2), "jpg": TWO, "caption": ["a", "b"]},
    "exact name first": {"image": TWO, "TEXT": ["x", "x"], "text": ["a", "b"], "Text": ["y", "y"]},
    "a number of that name": {"image": [1, 2], "Image": TWO, "caption": [1.5, 2.5], "text": ["a", "b"]},
    "twice, but not used": {"image": TWO, "caption": ["a", "b"], "n": [1, 2]},
}


@pytest.mark.parametrize("name", TYPES)
def test_columns_of_parquet(tmp_path, name):
    columns = TYPES[name]
    written = pa.table(columns)
    if name == "twice, but not used":
        written = written.append_column("n", pa.array([3, 4]))
    pq.write_table(written, tmp_path / "a.parquet")
    assert prepared(tmp_path) == (["a", "b"], {})


def test_captions_of_bytes_are_read_where_they_are_asked_for(tmp_path):
    table(tmp_path / "a.parquet", image=TWO, caption=[b"a", "é".encode()])
    with pytest.raises(
        ValueError, match=r"column of captions .*caption \(binary\): name the right one with --caption-key"
    ):
        prepared(tmp_path)
    assert prepared(tmp_path, caption_key="caption") == (["a", "é"], {})
