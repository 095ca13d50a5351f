"""What columns and fields are called and hold in tables, archives and JSON, and that one shard stops no other."""

import io
import json
import tarfile
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagen_jax.prepare import captions, origins
from imagen_jax.prepare.pictures import Rules
from imagen_jax.prepare.quarantine import LeftOut

NFC, NFD = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))


def png(i=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def put(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def archive(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def prepared(root, **keys):
    """Captions of the records, and {file: reason} of what is left out."""
    survey = origins.survey(root, **keys)
    job = origins.Pictures(survey.origin, Rules(1, 100))
    items = [item for part in survey.parts for item in job.examples(part)]
    rows = [*survey.left_out, *(item for item in items if isinstance(item, LeftOut))]
    return [item[1]["caption"] for item in items if not isinstance(item, LeftOut)], {
        row.file: row.reason for row in rows
    }


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


def test_captions_of_bytes_are_read_where_they_are_asked_for(tmp_path):
    table(tmp_path / "a.parquet", image=TWO, caption=[b"a", "é".encode()])
    with pytest.raises(
        ValueError, match=r"column of captions .*caption \(binary\): name the right one with --caption-key"
    ):
        prepared(tmp_path)
    assert prepared(tmp_path, caption_key="caption") == (["a", "é"], {})


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


# ---- archives ----

ARCHIVES = {
    "empty .txt": ({"0.png": png(), "0.txt": b"", "0.json": b'{"caption": "a"}'}, ["a"], {}),
    "invisible .txt": ({"0.png": png(), "0.txt": b"\xef\xbb\xbf \n", "0.json": b'{"TEXT": "a"}'}, ["a"], {}),
    "empty in both": ({"0.png": png(), "0.txt": b" ", "0.json": b"{}"}, [], {"x.tar:0.png": "no caption"}),
    "next field": ({"0.png": png(), "0.json": b'{"caption": null, "text": "a"}'}, ["a"], {}),
    "next, empty": ({"0.png": png(), "0.json": b'{"caption": "", "text": "a"}'}, ["a"], {}),
    "next, a list": ({"0.png": png(), "0.json": b'{"caption": [null, " "], "Text": ["a", "b"]}'}, ["a", "b"], {}),
    "a number": ({"0.png": png(), "0.json": b'{"caption": 5, "text": "a"}'}, [], {"x.tar:0.png": "unreadable caption"}),
    "twice the same": ({"0.png": png(), "0.json": b'{"caption": "a", "caption": "a"}'}, ["a"], {}),
    "twice another": (
        {"0.png": png(), "0.json": b'{"caption": "a", "caption": "b"}'}, [], {"x.tar:0.png": "unreadable caption"}
    ),
    "twice elsewhere": ({"0.png": png(), "0.json": b'{"n": 1, "n": 2, "caption": "a"}'}, ["a"], {}),
    "a long number": ({"0.png": png(), "0.json": b'{"n": %s, "caption": "a"}' % (b"9" * 5000)}, ["a"], {}),
    "deep": ({"0.png": png(), "0.json": b"[" * 10**5}, [], {"x.tar:0.png": "unreadable caption"}),
    "UTF-16": ({"0.png": png(), "0.json": '{"caption": "é"}'.encode("utf-16")}, ["é"], {}),
    "a mark": ({"0.png": png(), "0.json": b'\xef\xbb\xbf{"caption": "a"}'}, ["a"], {}),
    "cp1252": ({"0.png": png(), "0.json": b'{"caption": "\xe9"}'}, [], {"x.tar:0.png": "unreadable caption"}),
    "a dot before one": ({"./0.png": png(), "0.txt": b"a", "./d/1.png": png(), "d/./1.txt": b"b"}, ["a", "b"], {}),
    "a dot before one of two": (
        {"0.png": png(), "./0.png": png(1), "0.txt": b"a"}, ["a"], {"x.tar:./0.png": "duplicate key"}
    ),
    "NFC and NFD": ({f"{NFC}.png": png(), f"{NFD}.txt": b"a"}, ["a"], {}),
    "NFD and NFC": ({f"d/{NFD}.png": png(), f"d/{NFC}.json": b'{"caption": "a"}'}, ["a"], {}),
    "NFC folder": ({f"{NFD}/0.png": png(), f"{NFC}/0.txt": b"a"}, ["a"], {}),
    "both names": (
        {f"{NFC}.png": png(), f"{NFC}.txt": b"a", f"{NFD}.txt": b"b"}, ["a"], {f"x.tar:{NFD}.txt": "duplicate key"}
    ),
    "zero width": ({"0.png": png(), "0.txt": "\u200b\u2060\n\ufeff".encode()}, [], {"x.tar:0.png": "no caption"}),
    "joiners": ({"0.png": png(), "0.txt": "👩\u200d🚀\ufe0f\n".encode()}, ["👩\u200d🚀\ufe0f"], {}),
    "a NUL in JSON": (
        {"0.png": png(), "0.json": b'{"caption": "a\\u0000b"}'}, [], {"x.tar:0.png": "unreadable caption"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARCHIVES)
def test_captions_in_archives(tmp_path, name):
    members, expected, left_out = ARCHIVES[name]
    # Before it one whose first members have no captions: it stops no other.
    archive(tmp_path / "w.tar", {"0.png": png(), "0.cls": b"1"})
    archive(tmp_path / "x.tar", {**members, "last.png": png(), "last.txt": b"last"})
    assert prepared(tmp_path) == ([*expected, "last"], {"w.tar:0.png": "no caption", **left_out})


# ---- folders ----

FOLDERS = {
    "empty .txt": ({"0.txt": "", "0.json": '{"caption": "a"}'}, ["a"], {}),
    "longer name empty": ({"0.png.txt": " \n", "0.txt": "a"}, ["a"], {}),
    "longer name first": ({"0.png.txt": "a", "0.txt": "b"}, ["a"], {"0.txt": "caption without picture"}),
    "only .json": ({"0.json": '{"Text": "a"}'}, ["a"], {}),
    "UTF-16": ({"0.txt": "é\nb".encode("utf-16")}, ["é", "b"], {}),
    "old Mac": ({"0.txt": "a\rb"}, ["a", "b"], {}),
    "cp1252": ({"0.txt": b"caf\xe9"}, [], {"0.png": "unreadable caption"}),
    "invisible": ({"0.txt": "\u00ad\u200d\n\ufe0f"}, [], {"0.png": "no caption"}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_captions_beside_pictures(tmp_path, name):
    files, expected, left_out = FOLDERS[name]
    put(tmp_path, {"0.png": png(), "last.png": png(), "last.txt": "last", **files})
    assert prepared(tmp_path) == ([*expected, "last"], left_out)


def test_a_field_beside_pictures_may_be_named(tmp_path):
    put(tmp_path, {"0.png": png(), "0.txt": "no", "0.json": '{"alt": "a"}', "1.png": png(), "1.txt": "b"})
    assert prepared(tmp_path, caption_key="ALT")[0] == ["a", "b"]


# ---- tables of captions ----

LONG = "x" * 200_000
CAPTION_TABLES = {
    "long.csv": (f"file,caption\na.png,{LONG}\nb.png,b\n", [LONG, "b"], {}),
    "quoted.csv": (f'file,note,caption\na.png,"{LONG}",a\nb.png,,b\n', ["a", "b"], {}),
    "next.csv": ("file,caption,text\na.png,\u200b,a\nb.png,b,no\n", ["a", "b"], {}),
    "LAION.csv": ("FILE,TEXT\na.png,a\nb.png,b\n", ["a", "b"], {}),
    "exact.csv": ("file,Caption,caption\na.png,x,a\nb.png,y,b\n", ["a", "b"], {}),
    "mac.csv": ("file,caption\ra.png,a\rb.png,b\r", ["a", "b"], {}),
    "utf16.csv": ("file,caption\r\na.png,a\r\nb.png,b".encode("utf-16"), ["a", "b"], {}),
    "utf32.jsonl": ('{"file": "a.png", "text": "a"}\n{"file": "b.png", "text": "b"}'.encode("utf-32"), ["a", "b"], {}),
    "separators.csv": ("file,caption\na.png,a\u2028a\x0ca\x85\nb.png,b\n", ["a\u2028a\x0ca", "b"], {}),
    "blank.csv": ("\n\nfile,caption\n\na.png,a\n\nb.png,b\n", ["a", "b"], {}),
    "short.csv": ("file,caption\na.png\nb.png,b\n", ["b"],
                  {"captions.csv:2": "unusable table row", "a.png": "no caption"}),
    "nul.csv": ("file,caption\na.png,a\0\nb.png,b\n", ["b"],
                {"captions.csv:2": "unreadable caption", "a.png": "no caption"}),
    "next.jsonl": ('{"file": "a.png", "caption": [""], "text": "a"}\n{"Image": "b.png", "TEXT": "b"}\n',
                   ["a", "b"], {}),
    "twice.jsonl": ('{"file": "a.png", "text": "a", "text": "c"}\n{"file": "b.png", "text": "b"}\n', ["b"],
                    {"captions.jsonl:1": "unusable table row", "a.png": "no caption"}),
    "deep.jsonl": ("[" * 10**5 + '\n{"file": "b.png", "text": "b"}\n', ["b"],
                   {"captions.jsonl:1": "unusable table row", "a.png": "no caption"}),
    "together.csv": ("\ufefffile,caption\na.png,a\n\ufeffb.png,\ufeffb\n", ["a", "b"], {}),
    "together.jsonl": ('\ufeff{"file": "a.png", "text": "a"}\n\ufeff{"file": "b.png", "text": "b"}', ["a", "b"], {}),
    "cut.jsonl": (b"\xff\xfe" + '{"file": "b.png", "text": "b"}\n'.encode("utf-16-le") + b"a", ["b"],
                  {"captions.jsonl:2": "unreadable caption", "a.png": "no caption"}),
}  # fmt: skip


def test_a_key_twice_is_the_reason(tmp_path):
    row = '{"file": "a.png", "caption": "a", "caption": "c"}'
    put(tmp_path, {"a.png": png(), "captions.jsonl": row})
    with pytest.raises(
        ValueError, match="line 1 has a key twice with different values: leave one of them out"
    ):
        prepared(tmp_path)
    put(
        tmp_path,
        {"b.png": png(), "captions.jsonl": row + '\n{"file": "b.png", "file": "b.png", "caption": "b"}'},
    )
    (row,) = [row for row in origins.survey(tmp_path).left_out if row.file == "captions.jsonl:1"]
    assert row.detail == "a key twice with different values: leave one of them out"


@pytest.mark.parametrize("name", CAPTION_TABLES)
def test_tables_of_captions(tmp_path, name):
    content, expected, left_out = CAPTION_TABLES[name]
    put(tmp_path, {"a.png": png(0), "b.png": png(1), f"captions.{name.split('.')[1]}": content})
    assert prepared(tmp_path) == (expected, left_out)


@pytest.mark.parametrize(
    "content, message",
    [
        (
            "file,caption,caption\na.png,a,b\n",
            "captions.csv must have one column called caption; got 2: rename all but one",
        ),
        ("file, caption ,caption\na.png,a,b\n", "one column called caption; got 2"),
        ("File,File,text\na.png,a.png,b\n", "one column called File; got 2"),
        ("file,TEXT,TEXT,TEXT\na.png,a,b,c\n", "one column called TEXT; got 3"),
        (
            "file,caption\na.png,a\n".encode("utf-16-le"),
            "NUL characters, as UTF-16 without a byte order mark has",
        ),
        (b"file,caption\na.png,caf\xe9\n", "line 2 has text that is not UTF-8: save it as UTF-8"),
        ('"File";"Caption"\n"a.png";"a"\n', "its columns are separated by ';', where commas are expected"),
        ("file\ttext\na.png\ta".encode("utf-16"), r"its columns are separated by '\\t'"),
        (b"\xff\xfef\0i\0\0\xd8", "text that is not UTF-16-LE, and the rest is not read: save it as UTF-8"),
    ],
)
def test_tables_that_cannot_be_used_are_told_in_one_line(tmp_path, content, message):
    put(tmp_path, {"a.png": png(), "captions.csv": content})
    with pytest.raises(ValueError, match=message) as raised:
        prepared(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "have, wanted, expected",
    [
        (["TEXT", "caption", " Caption", "n"], ("caption", "text"), ["caption", " Caption", "TEXT"]),
        (["Caption", "CAPTION"], ("caption",), ["Caption", "CAPTION"]),
        (["caption", "Caption"], ("Caption",), ["Caption", "caption"]),
        (["captions", "context"], ("caption", "text"), []),
    ],
)
def test_the_exact_name_goes_first(have, wanted, expected):
    assert captions.columns(have, wanted) == expected


def test_json_values_keep_their_meaning():
    text = '{"a": [1, -2.5, 1e400, null, true, "\\u00e9"], "b": {"c": -123}}'
    assert captions.parse_json(text) == json.loads(text)
