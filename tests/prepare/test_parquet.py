"""What columns and fields are called and hold in tables, archives and JSON, and that one shard stops no other."""


import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagen_jax.prepare import parquet
from tests.prepare.conftest import png, prepare, prepared, put, random_picture, table

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


def test_texts_of_parquet_are_of_any_type(tmp_path, script):
    kinds = (pa.string_view(), pa.list_(pa.string(), 1), pa.binary())
    for i, kind in enumerate(kinds):
        texts = pa.array(
            [["one"]] if i == 1 else ["one"], pa.list_(pa.string(), 1) if i == 1 else pa.string()
        )
        table = pa.table({"image": [random_picture(i)], "text": texts if i == 1 else texts.cast(kind)})
        pq.write_table(table, tmp_path / f"{i}.parquet")
        key = {"caption_key": "text"} if i == 2 else {}
        kept, _ = prepare(script, tmp_path / f"{i}.parquet", tmp_path / f"out{i}", **key)
        assert kept == [("one", random_picture(i))]
    table = pa.Table.from_arrays(
        [pa.array([random_picture(0)]), pa.array(["a"]), pa.array(["b"])], ["image", "text", "text"]
    )
    pq.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="one column called text; got 2"):
        prepare(script, tmp_path / "twice.parquet", tmp_path / "out")


# ---- tables ----


def test_parquet_as_img2dataset_and_hugging_face_write_it(tmp_path, script, monkeypatch):
    good = [random_picture(i) for i in range(5)]
    bad_text = pa.array([b"one", b"two", None, b"\xff", b" "], pa.binary()).view(pa.string())
    table = pa.table(
        {
            "jpg": pa.array([good[0], b"text", good[2], good[3], good[4]], pa.binary()),
            "caption": bad_text,
            "status": ["success", "success", "failed_to_download", "success", "success"],
            "key": ["0", "1", "2", "3", "4"],
        }
    )
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet", row_group_size=2)
    monkeypatch.setattr(parquet, "PART", 1)
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    assert kept == [("one", good[0])]
    assert left_out == [
        ("a.parquet:1", "undecodable"),
        ("a.parquet:2", "download failed"),
        ("a.parquet:3", "unreadable caption"),
        ("a.parquet:4", "no caption"),
    ]
    image = [
        {"bytes": good[0], "path": "a"},
        {"bytes": None, "path": "b"},
        None,
        {"bytes": good[3], "path": ""},
    ]
    table = pa.table(
        {"n": [1, 2, 3, 4], "image": image, "alt": [["one", "eins"], ["x"], ["x"], ["three", None]]}
    )
    pq.write_table(table, tmp_path / "b.parquet")
    kept, left_out = prepare(script, tmp_path / "b.parquet", tmp_path / "b", caption_key="alt")
    assert kept == [("one", good[0]), ("eins", good[0]), ("three", good[3])]
    assert left_out == [("b.parquet:1", "no picture"), ("b.parquet:2", "no picture")]
    for options, message in (
        ({}, r"must have a column of captions called caption or text; got n \(int64\), image .*alt \(list<"),
        ({"caption_key": "n"}, "column of captions called n; got"),
        ({"image_key": "jpg", "caption_key": "alt"}, "column of pictures called jpg; .*--image-key"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(script, tmp_path / "b.parquet", tmp_path / "no", **options)
    pq.write_table(table.select(["n", "image"]), tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="must have a column of captions"):
        prepare(script, tmp_path / "c.parquet", tmp_path / "no")


def test_a_status_of_another_kind_loses_nothing(tmp_path, script):
    table = pa.table({"image": [random_picture(0)], "text": ["one"], "status": ["published"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert prepare(script, tmp_path / "a.parquet", tmp_path / "out") == ([("one", random_picture(0))], [])


def test_of_a_damaged_table_what_can_be_read_stays(tmp_path, script):
    images = [random_picture(i) if i != 30 else b"text" for i in range(40)]
    table = pa.table({"png": images, "text": [str(i) for i in range(40)]})
    options = {"row_group_size": 20, "compression": "none", "use_dictionary": False}
    (tmp_path / "in").mkdir()
    pq.write_table(table, tmp_path / "in" / "a.parquet", **options)
    whole = (tmp_path / "in" / "a.parquet").read_bytes()
    column = pq.read_metadata(tmp_path / "in" / "a.parquet").row_group(0).column(0)
    place = column.data_page_offset
    (tmp_path / "in" / "b.parquet").write_bytes(whole[:place] + b"\xff" * 40 + whole[place + 40 :])
    (tmp_path / "in" / "c.parquet").write_bytes(whole[: len(whole) // 2])
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    assert [int(caption) for caption, _ in kept] == [i for i in [*range(40), *range(20, 40)] if i != 30]
    assert left_out == [
        ("c.parquet", "damaged archive"),
        ("a.parquet:30", "undecodable"),
        ("b.parquet:0", "damaged archive"),
        ("b.parquet:30", "undecodable"),
    ]
