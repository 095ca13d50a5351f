"""Archives: which member holds the picture and which the captions."""

import os
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imagen_jax.prepare import webdataset
from tests.prepare.conftest import archive, found, huge, png, prepare, prepared, random_picture

NFC, NFD = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
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


def in_archive(root, members, **keys):
    return webdataset.Archives(root, **keys), [archive(root / "x.tar", members).name]


def test_pictures_with_dotted_names_in_archives(tmp_path):
    members = {"0.v1.png": png(), "0.v1.txt": b"zero", "0.v2.png": png(), "1.png": png(), "1.txt": b"one"}
    members |= {"1.seg.png": png(), "2.a.png": png(), "2.b.png": png(), "2.txt": b"two", "3.x.png": png()}
    members |= {
        "3.json": b'{"caption": ["three", null, "drei"]}',
        "4.heic": b"?",
        "4.txt": b"four",
        "5.a.txt": b"-",
    }
    kept, left_out = found(*in_archive(tmp_path, members))
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
    kept, left_out = found(*in_archive(tmp_path, members, image_key=".A.PNG"))
    assert kept == [("x.tar:2.a.png", ("two",))]
    assert ("x.tar:1.png", "no picture") in left_out
    members = {"0.v1.png": png(), "0.v1.json": b'{"text": "zero"}'}
    assert found(*in_archive(tmp_path, members)) == ([("x.tar:0.v1.png", ("zero",))], [])


def test_a_named_field_wins(tmp_path):
    members = {"0.png": png(), "0.txt": b"old", "0.json": b'{"new": "better", "caption": "no"}'}
    members |= {"1.png": png(), "1.txt": b"only"}
    kept, _ = found(*in_archive(tmp_path, members, caption_key="new"))
    assert kept == [("x.tar:0.png", ("better",)), ("x.tar:1.png", ("only",))]
    kept, _ = found(*in_archive(tmp_path, members))
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
    origin, _ = in_archive(tmp_path, members)
    (tmp_path / "a.tar").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=message):
        origin.plan(sorted(os.listdir(tmp_path)))


# ---- archives ----


def test_archives_are_read_as_webdataset_has_them(tmp_path, script, monkeypatch):
    good = [random_picture(i) for i in range(8)]
    members = [
        ("a/1.png", good[0]),
        ("a/2.PNG", good[1]),
        ("a/1.txt", b"one\n\n eins \none"),  # not beside its picture
        ("a/1.json", b'{"caption": "not this"}'),
        ("a/2.json", '{"caption": "zwei ü"}'.encode()),
        ("a/3.png", good[2]),
        ("a/3.json", b'{"text": "three", "width": 3}'),
        ("a/3.cls", b"7"),
        ("a/3.png", good[3]),  # again
        ("b/4.png", b"I am text"),
        ("b/4.txt", b"four"),
        ("b/5.png", good[4]),
        ("b/5.json", b'{"caption": 5}'),
        ("b/6.png", good[5]),
        ("b/6.json", b'{"caption": null}'),
        ("b/7.png", good[6]),
        ("b/7.json", b"{broken"),
        ("b/8.png", good[7]),
        ("b/8.txt", b"\xff\xfe\xfa"),
        ("b/9.txt", b"nine"),
        ("b/10.png", good[0]),
        ("b/11.png", huge()),
        ("b/11.txt", b"eleven"),
        ("b/12.jpg", random_picture(12, "JPEG")),
        ("b/12.png", random_picture(12)),
        ("b/13.png", good[0]),
        ("b/13.json", b'{"caption": "\\ud800"}'),
        ("b/._14.png", b"hidden"),
    ]
    archive(tmp_path / "in" / "sub" / "x.tar", members)
    # As img2dataset leaves it beside its archives.
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"]}), tmp_path / "in" / "x.parquet")
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    assert kept == [("one", good[0]), ("eins", good[0]), ("zwei ü", good[1]), ("three", good[2])]
    assert sorted(left_out) == [
        ("sub/x.tar:a/3.png", "duplicate key"),
        ("sub/x.tar:b/10.png", "no caption"),
        ("sub/x.tar:b/11.png", "too large"),
        ("sub/x.tar:b/12.jpg", "duplicate key"),
        ("sub/x.tar:b/13.png", "unreadable caption"),
        ("sub/x.tar:b/4.png", "undecodable"),
        ("sub/x.tar:b/5.png", "unreadable caption"),
        ("sub/x.tar:b/6.png", "no caption"),
        ("sub/x.tar:b/7.png", "unreadable caption"),
        ("sub/x.tar:b/8.png", "unreadable caption"),
        ("sub/x.tar:b/9.txt", "caption without picture"),
    ]
    # One file as the input, cut into several parts.
    monkeypatch.setattr(webdataset, "CUT", 0)
    monkeypatch.setattr(webdataset, "PART", 3)
    again, left_again = prepare(script, tmp_path / "in" / "sub" / "x.tar", tmp_path / "cut")
    assert again == kept and sorted(left_again) == [(f[4:], reason) for f, reason in sorted(left_out)]


def test_keys_choose_the_member_and_the_field(tmp_path, script):
    pairs = [random_picture(i) for i in range(2)]
    members = [("1.seg.png", b"-"), ("1.orig.png", pairs[0]), ("1.json", b'{"alt": "one", "caption": "no"}')]
    root = archive(tmp_path / "x.tar", members)
    kept, _ = prepare(script, root, tmp_path / "out", image_key="orig.png", caption_key="alt")
    assert kept == [("one", pairs[0])]
    for options, message in (
        ({"caption_key": "altt"}, r"got 'altt': it has .*fields of .json: alt \(str\), caption \(str\)"),
        ({"image_key": "jpg"}, r"got 'jpg': it has seg.png \(file\), orig.png \(file\), json"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(script, root, tmp_path / "no", **options)
    assert sorted(os.listdir(tmp_path)) == ["out", "x.tar"]


def test_a_key_may_be_the_extension_of_the_captions(tmp_path, script):
    root = archive(tmp_path / "x.tar", [("1.png", random_picture(1)), ("1.Caption", b"one"), ("1.json", b"{}")])
    with pytest.raises(ValueError, match="the extension of the captions, with --caption-key"):
        prepare(script, root, tmp_path / "no")
    kept, left_out = prepare(script, root, tmp_path / "out", caption_key=".caption")
    assert kept == [("one", random_picture(1))] and not left_out
