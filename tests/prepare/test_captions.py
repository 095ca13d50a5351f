"""Where captions stand: sidecars, tables and members of archives as people name them, mistakes told at once."""

import io
import os
import tarfile
import unicodedata

import numpy as np
import pytest
from PIL import Image

from imagen_jax.prepare import captions, folder, webdataset
from imagen_jax.prepare.pictures import Found


def png(i=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def put(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder.Folder(root), sorted(files)


def found(origin, files):
    """[(file, captions)] and [(file, reason)] of a plan and its parts."""
    parts, left_out = origin.plan(files)
    items = [item for part in parts for item in origin.read(part)]
    kept = [(item.file, item.captions) for item in items if isinstance(item, Found)]
    rows = [*left_out, *(item for item in items if not isinstance(item, Found))]
    return kept, [(row.file, row.reason) for row in rows]


def archive(root, members, **keys):
    with tarfile.open(root / "x.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return webdataset.Archives(root, **keys), ["x.tar"]


def test_only_line_ends_cut_captions():
    assert captions.lines("a\u2028b\x0cc\r\nd\n".encode(), "") == ("a\u2028b\x0cc", "d", "")


def test_names_beside_pictures(tmp_path):
    files = {
        "A.JPG": png(),
        "A.JPG.txt": "a",
        "b.png": png(),
        "b.txt": "b",
        "b.png.txt": "own",
        "c.jfif": png(),
    }
    files |= {"c.txt": "c", "d.heic": b"?", "d.txt": "d", "e.ico": b"?"}
    kept, left_out = found(*put(tmp_path, files))
    assert kept == [("A.JPG", ("a",)), ("b.png", ("own",)), ("c.jfif", ("c",))]
    assert sorted(left_out) == [("b.txt", "caption without picture"), ("d.heic", "unknown format")]


def test_names_in_tables(tmp_path):
    composed = unicodedata.normalize("NFC", "é.png")
    separate = unicodedata.normalize("NFD", "ü.png")
    table = f"file,caption\n{unicodedata.normalize('NFD', composed)},one\n"
    table += f"{unicodedata.normalize('NFC', separate)},two\n{tmp_path}/sub/a.png,three\n/no/b.png,four\n"
    files = {composed: png(), separate: png(), "sub/a.png": png(), "Captions.CSV": table}
    kept, left_out = found(*put(tmp_path, files))
    assert sorted(kept) == sorted([(composed, ("one",)), (separate, ("two",)), ("sub/a.png", ("three",))])
    assert left_out == [("/no/b.png", "caption without picture")]
    kept, _ = found(
        *put(tmp_path / "b", {"a.png": png(), "captions.jsonl": '{"file": "a.png", "text": ["x", "y"]}'})
    )
    assert kept == [("a.png", ("x", "y"))]


@pytest.mark.parametrize(
    "name, content, message",
    [
        (
            "a.json",
            "{}",
            r"must have captions: .*cat.jpg.txt for cat.jpg.*got none for 1 pictures, .* not used: a.json",
        ),
        ("sub/metadata.jsonl", "{}", "a table at the top.*not used: sub/metadata.jsonl"),
        (
            "captions.csv",
            "file,caption\nx/a.png,one\n",
            "must name pictures in .*, such as 'a.png'; got 'x/a.png'",
        ),
        ("captions.jsonl", '[{"file": "a.png", "caption": "x"}]', "it is a JSON array, where each line"),
        ("captions.jsonl", "a.png one\n", "its first line is no JSON, where each should be an object"),
        ("captions.csv", "file;caption\na.png;one\n", "columns are separated by ';', where commas"),
        ("captions.csv", "a.png,one\nb.png,two\n", "has no header: its first line is 'a.png,one'"),
        ("captions.csv", "", "it is empty"),
    ],
)
def test_folders_without_captions_are_explained(tmp_path, name, content, message):
    origin, files = put(tmp_path, {"a.png": png(), name: content})
    with pytest.raises(ValueError, match=message) as raised:
        origin.plan(files)
    assert "\n" not in str(raised.value)


def test_pictures_with_dotted_names_in_archives(tmp_path):
    members = {"0.v1.png": png(), "0.v1.txt": b"zero", "0.v2.png": png(), "1.png": png(), "1.txt": b"one"}
    members |= {"1.seg.png": png(), "2.a.png": png(), "2.b.png": png(), "2.txt": b"two", "3.x.png": png()}
    members |= {
        "3.json": b'{"caption": ["three", null, "drei"]}',
        "4.heic": b"?",
        "4.txt": b"four",
        "5.a.txt": b"-",
    }
    kept, left_out = found(*archive(tmp_path, members))
    assert kept == [
        ("x.tar:0.v1.png", ("zero",)),
        ("x.tar:1.png", ("one",)),
        ("x.tar:3.x.png", ("three", "drei")),
    ]
    assert left_out == [
        ("x.tar:0.v2.png", "no caption"),
        ("x.tar:2.a.png", "duplicate key"),
        ("x.tar:4.heic", "unknown format"),
        ("x.tar:5.a.txt", "caption without picture"),
    ]
    kept, left_out = found(*archive(tmp_path, members, image_key=".A.PNG"))
    assert kept == [("x.tar:2.a.png", ("two",))]
    assert ("x.tar:1.png", "no picture") in left_out
    members = {"0.v1.png": png(), "0.v1.json": b'{"text": "zero"}'}
    assert found(*archive(tmp_path, members)) == ([("x.tar:0.v1.png", ("zero",))], [])


def test_a_named_field_wins(tmp_path):
    members = {"0.png": png(), "0.txt": b"old", "0.json": b'{"new": "better", "caption": "no"}'}
    members |= {"1.png": png(), "1.txt": b"only"}
    kept, _ = found(*archive(tmp_path, members, caption_key="new"))
    assert kept == [("x.tar:0.png", ("better",)), ("x.tar:1.png", ("only",))]
    kept, _ = found(*archive(tmp_path, members))
    assert kept == [("x.tar:0.png", ("old",)), ("x.tar:1.png", ("only",))]


@pytest.mark.parametrize(
    "members, message",
    [
        (
            {"0.png": b"", "0.cls": b"1"},
            r"must have captions .*got png \(file\), cls \(file\); fields .*: no .json",
        ),
        ({"0.png": b"", "0.json": b'{"alt": "x"}'}, r"fields of .json: alt \(str\): name .* --caption-key"),
        (
            {"0.npy": b"", "0.txt": b"x"},
            r"must have pictures .*; got npy \(file\), txt \(file\): .*--image-key",
        ),
    ],
)
def test_archives_without_what_is_needed_fail_before_any_work(tmp_path, members, message):
    origin, _ = archive(tmp_path, members)
    (tmp_path / "a.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=message):
        origin.plan(sorted(os.listdir(tmp_path)))
