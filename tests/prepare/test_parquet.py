"""What columns and fields are called and hold in tables, archives and JSON, and that one shard stops no other."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.prepare.conftest import png, prepared, put, table

# ---- parquet ----

TWO = [png(0), png(1)]


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_encodings_that_arrow_reads_but_not_as_dictionaries(tmp_path, encoding):
    options = {"use_dictionary": False, "column_encoding": {"image": encoding, "text": encoding}}
    pq.write_table(pa.table({"image": TWO, "text": ["a", "b"]}), tmp_path / "a.parquet", **options)
    assert prepared(tmp_path) == (["a", "b"], {})


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "brotli", "lz4", "zstd"])
def test_compressions(tmp_path, codec):
    pq.write_table(
        pa.table({"image": TWO, "text": [["a"], ["b"]]}), tmp_path / "a.parquet", compression=codec
    )
    assert prepared(tmp_path) == (["a", "b"], {})


def test_a_key_names_a_column_however_it_is_capitalised(tmp_path):
    table(tmp_path / "a.parquet", Picture=TWO, ALT=["a", "b"], image=[b"x", b"y"], caption=["c", "d"])
    assert prepared(tmp_path, image_key="PICTURE", caption_key="alt") == (["a", "b"], {})


SHARDS = {
    "all null": ({"image": TWO, "caption": pa.nulls(2)}, {"b.parquet:0": "no caption", "b.parquet:1": "no caption"}),
    "lists without values": (
        {"image": TWO, "caption": pa.array([[], None], pa.list_(pa.null()))},
        {"b.parquet:0": "no caption", "b.parquet:1": "no caption"},
    ),
    "pictures all null": (
        {"image": pa.nulls(2), "caption": ["a", "b"]},
        {"b.parquet:0": "no picture", "b.parquet:1": "no picture"},
    ),
    "structs without bytes": (
        {"image": [{"bytes": None, "path": "p"}], "caption": ["a"]},
        {"b.parquet:0": "no picture"},
    ),
    "no captions": ({"image": TWO, "n": [1, 2]}, {"b.parquet": "no column"}),
    "no pictures": ({"n": [1, 2], "caption": ["a", "b"]}, {"b.parquet": "no column"}),
    "captions are numbers": ({"image": TWO, "caption": [1, 2]}, {"b.parquet": "no column"}),
    "no rows": ({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}, {}),
    "no rows and no captions": ({"n": pa.array([], pa.int8())}, {}),
    "no columns": ({}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARDS)
def test_a_shard_with_another_schema_stops_no_other(tmp_path, name):
    columns, left_out = SHARDS[name]
    table(tmp_path / "b.parquet", **columns)
    for other in ("a", "c"):
        table(tmp_path / f"{other}.parquet", image=TWO, caption=[f"{other}0", f"{other}1"])
    assert prepared(tmp_path) == (["a0", "a1", "c0", "c1"], left_out)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table", b"PAR1" + b"\xff" * 8 + b"PAR1"])
def test_a_shard_that_is_none_stops_no_other(tmp_path, content):
    put(tmp_path, {"a.parquet": content})
    table(tmp_path / "b.parquet", image=TWO, caption=["b0", "b1"])
    assert prepared(tmp_path) == (["b0", "b1"], {"a.parquet": "damaged archive"})


def test_two_columns_of_one_name_are_refused_and_stop_no_other_shard(tmp_path):
    twice = pa.Table.from_arrays(
        [pa.array(TWO), pa.array(["a", "b"]), pa.array(["c", "d"])], ["image", "text", "text"]
    )
    pq.write_table(twice, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="one column called text; got 2: rename all but one"):
        prepared(tmp_path)
    table(tmp_path / "b.parquet", image=TWO, text=["b0", "b1"])
    assert prepared(tmp_path) == (["b0", "b1"], {"a.parquet": "no column"})
