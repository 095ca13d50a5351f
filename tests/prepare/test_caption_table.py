"""Tables of captions beside pictures: their columns, their rows, and what is wrong with one."""

import unicodedata

import pytest

from imagen_jax.prepare import folder, origins
from tests.prepare.conftest import found, png, prepare, prepared, put, random_picture

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


def in_folder(root, files):
    put(root, files)
    return folder.Folder(root), sorted(files)


def test_names_in_tables(tmp_path):
    composed = unicodedata.normalize("NFC", "é.png")
    separate = unicodedata.normalize("NFD", "ü.png")
    table = f"file,caption\n{unicodedata.normalize('NFD', composed)},one\n"
    table += f"{unicodedata.normalize('NFC', separate)},two\n{tmp_path}/sub/a.png,three\n/no/b.png,four\n"
    files = {composed: png(), separate: png(), "sub/a.png": png(), "Captions.CSV": table}
    kept, left_out = found(*in_folder(tmp_path, files))
    assert sorted(kept) == sorted([(composed, ("one",)), (separate, ("two",)), ("sub/a.png", ("three",))])
    assert left_out == [("/no/b.png", "caption without picture")]
    kept, _ = found(
        *in_folder(tmp_path / "b", {"a.png": png(), "captions.jsonl": '{"file": "a.png", "text": ["x", "y"]}'})
    )
    assert kept == [("a.png", ("x", "y"))]


@pytest.mark.parametrize(
    "table, expected, left",
    [
        ("file,caption\na.png,one, two\nb.png,bee,\n", ["bee"], ["captions.csv:2", "a.png", "c.png"]),
        ('file,caption\nb.png,bee\na.png,"open\nc.png,sea\n', ["bee"], ["captions.csv:3", "a.png", "c.png"]),
        ('file,caption\na.png,"two\nlines"\nb.png,\nc.png,"say ""sea"""\n', ["two\nlines", 'say "sea"'],
         ["captions.csv:4", "b.png"]),
        (" File , Caption ,text\na.png,,other\nb.png,bee,x\n", ["other", "bee"], ["c.png"]),
        ("filename,text\na.png,caf\udce9\nb.png,bee\n", ["bee"], ["captions.csv:2", "a.png", "c.png"]),
    ],
)  # fmt: skip
def test_rows_of_tables_are_kept_whole_or_listed(tmp_path, script, table, expected, left):
    (tmp_path / "in").mkdir()
    for i, name in enumerate("abc"):
        (tmp_path / "in" / f"{name}.png").write_bytes(random_picture(i))
    (tmp_path / "in" / "captions.csv").write_bytes(table.encode("utf-8", "surrogateescape"))
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    assert [caption for caption, _ in kept] == expected and [file for file, _ in left_out] == left


def test_a_json_line_that_is_no_object_is_not_taken_for_a_reason(tmp_path, script):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(random_picture(0))
    (tmp_path / "in" / "captions.jsonl").write_text('"a text"\n')
    with pytest.raises(ValueError, match="its first line is a str, where each should be an object"):
        prepare(script, tmp_path / "in", tmp_path / "out")
