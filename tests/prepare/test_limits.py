"""Limits of what is read of a picture, a text, a table and an archive, asked before it is read."""

import os
import re
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from imagen_jax.prepare import origins, pictures, quarantine, tar_index, text_files
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.quarantine import Unusable
from tests.prepare.conftest import png, prepared, put

LIMITS = Limits(image_bytes=500, caption_bytes=20, captions=3, page_bytes=10_000)
TEXT = 200  # bytes of a file, line or field


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(text_files, "MAX_BYTES", TEXT)


def header(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def member(name, content, size=None, kind=tarfile.REGTYPE):
    return header(name, len(content) if size is None else size, kind) + content + bytes(-len(content) % 512)


TEXTS = {
    "large text": (b"a\n" * TEXT, "too large"),
    "of holes": (2**40, "too large"),
    "long": (b"a" * 21, "caption too long"),
    "one long": (b"a\n" + b"a" * 21 + b"\nb", "caption too long"),
    "long in bytes": ("é" * 11, "caption too long"),
    "many": (b"a\nb\nc\nd", "too many captions"),
    "just enough": (b"  " + b"a" * 20 + b"\nb\nb\n\nc", ["a" * 20, "b", "c"]),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_beside_pictures(tmp_path, name):
    content, expected = TEXTS[name]
    put(
        tmp_path,
        {"a.png": png(), "a.txt": b"" if isinstance(content, int) else content, "b.png": png(), "b.txt": "b"},
    )
    if isinstance(content, int):
        os.truncate(tmp_path / "a.txt", content)
    captions, reasons = ([], {"a.png": expected}) if isinstance(expected, str) else (expected, {})
    assert prepared(tmp_path, limits=LIMITS) == ([*captions, "b"], reasons)


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("kind", ["txt", "json"])
def test_texts_in_archives(tmp_path, name, kind):
    content, expected = TEXTS[name]
    content = content.encode() if isinstance(content, str) else content
    if isinstance(content, int):
        text, size = b"", 2**31
    elif kind == "json":
        lines = ", ".join(f'"{line}"' for line in content.decode().split("\n"))
        text, size = b'{"caption": [%s]}' % lines.encode(), None
    else:
        text, size = content, None
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(member("b.png", png()) + member("b.txt", b"b") + member("a.png", png()))
        file.write(member(f"a.{kind}", text, size))
        file.seek(size or 0, 1)
        file.write(bytes(1024))
    captions, reasons = ([], {"x.tar:a.png": expected}) if isinstance(expected, str) else (expected, {})
    assert prepared(tmp_path, limits=LIMITS) == (["b", *captions], reasons)


def test_pictures_of_too_many_bytes_are_not_read(tmp_path):
    put(tmp_path / "a", {"a.png": png(), "a.txt": "a", "b.png": png(), "b.txt": "b"})
    os.truncate(tmp_path / "a" / "a.png", 2**40)
    assert prepared(tmp_path / "a", limits=LIMITS) == (["b"], {"a.png": "too large"})
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(member("b.png", png()) + member("b.txt", b"b") + member("a.txt", b"a"))
        file.write(header("a.png", 2**33))
        file.seek(2**33, 1)
        file.write(bytes(1024))
    assert prepared(tmp_path / "x.tar", limits=LIMITS) == (["b"], {"x.tar:a.png": "too large"})
    assert prepared(tmp_path / "x.tar", Limits(image_bytes=len(png()), captions=1))[0] == ["b"]


def test_only_files_are_read(tmp_path, monkeypatch):
    put(tmp_path, {f"{i}.png": png() for i in "012345"} | {f"{i}.txt": i for i in "012345678"})
    for name in ("0.txt", "1.png"):
        (tmp_path / name).unlink()
        os.mkfifo(tmp_path / name)
    for name, target in (("2.txt", "2.txt"), ("3.png", "nowhere"), ("6.png", "/dev/zero"), ("7.tar", "no")):
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(target)
    with socket.socket(socket.AF_UNIX) as unix:
        monkeypatch.chdir(tmp_path)  # the path of a socket is short
        unix.bind("8.png")
    reasons = dict.fromkeys(
        ("0.txt", "1.png", "2.txt", "3.png", "6.png", "7.tar", "8.png"), "unreadable file"
    )
    reasons |= dict.fromkeys(("0.png", "2.png"), "no caption")
    reasons |= dict.fromkeys(("1.txt", "3.txt", "6.txt", "7.txt", "8.txt"), "caption without picture")
    assert prepared(tmp_path, limits=LIMITS) == (["4", "5"], reasons)


@pytest.mark.parametrize(
    "name, rows, expected, reasons",
    [
        ("captions.csv", f"a.png,{'a' * 201}\nb.png,b\n", ["b"], {"captions.csv:2": "too large"}),
        ("captions.csv", f'b.png,b\na.png,"{"a" * 50}\n' + "x\n" * 200, ["b"], {"captions.csv:3": "too large"}),
        ("captions.csv", f'b.png,b\na.png,"{"a" * 5000}', ["b"], {"captions.csv:3": "unusable table row"}),
        ("captions.csv", f"b.png,b\n{',' * 5000}\n", ["b"], {"captions.csv:3": "too large"}),
        ("captions.csv", "b.png,b\n" + "".join(f"a.png,{i}\n" for i in range(4)), ["b"], {}),
        ("captions.csv", f"a.png,{'a' * 21}\nb.png,b\n", ["b"], {}),
        ("captions.jsonl", f'{{"file": "a.png", "text": "{"a" * 999}"}}', ["b"], {"captions.jsonl:2": "too large"}),
        ("captions.jsonl", '{"file": "a.png", "text": ["a", "b", "c", "d"]}\n', ["b"], {}),
    ],
)  # fmt: skip
def test_tables_of_captions(tmp_path, name, rows, expected, reasons):
    head = "file,caption\n" if name.endswith("csv") else '{"file": "b.png", "text": "b"}\n'
    put(tmp_path, {"a.png": png(), "b.png": png(), name: head + rows})
    captions, left_out = prepared(tmp_path, limits=LIMITS)
    assert captions == expected and reasons.items() <= left_out.items()
    assert left_out["a.png"] in ("no caption", "too many captions", "caption too long")


def test_of_a_table_only_so_many_rows_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(quarantine.Shortlist, "MOST", 2)
    rows = "".join(f"no{i}.png,x\n" for i in range(5)) + ",\n" * 3
    put(tmp_path, {"b.png": png(), "captions.csv": f"file,caption\nb.png,b\n{rows}"})
    survey = origins.survey(tmp_path)
    assert [(row.file, row.reason, row.detail[:11]) for row in survey.left_out] == [
        ("no0.png", "caption without picture", ""),
        ("no1.png", "caption without picture", ""),
        ("captions.csv:8", "unusable table row", "expected te"),
        ("captions.csv:9", "unusable table row", "expected te"),
        ("captions.csv", "unusable table row", "1 more rows"),
        ("captions.csv", "caption without picture", "3 more rows"),
    ]


# ---- archives ----

GOOD = member("b.png", png()) + member("b.txt", b"b")


def negative():
    head = bytearray(header("a.png", 0))
    head[124:136] = b"\xff" * 10 + b"\xfc\x00"
    head[148:156] = b"%06o\0 " % sum(head[:148] + b" " * 8 + head[156:])
    return bytes(head)


def shared(i):
    record = f" k{i}=v\n"
    return member("g", f"{len(record) + 2}{record}".encode(), kind=tarfile.XGLTYPE) + GOOD


@pytest.mark.parametrize(
    "content",
    [
        header("x", 2**31, tarfile.XHDTYPE),
        header("x", 2**31, tarfile.GNUTYPE_LONGNAME),
        member("x", b"abc\0", kind=tarfile.GNUTYPE_LONGNAME) * 2000,
        negative(),
        b"".join(map(shared, range(200))),
        member("x" * 90, b"") * 30,
    ],
    ids=["extended header", "long name", "long names", "negative size", "global headers", "members"],
)
def test_archives_made_to_take_all_memory_end_there(tmp_path, monkeypatch, content):
    monkeypatch.setattr(tar_index, "_INDEX", 10_000)
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(GOOD + content.replace(b"x" * 90, b"x" * 86 + b".png"))
        file.truncate(2**32)
    captions, reasons = prepared(tmp_path, limits=LIMITS)
    assert captions == ["b"] and reasons["x.tar"] in ("damaged archive", "too large")


# ---- memory ----

BOMBS = r"""
import resource, sys
from pathlib import Path
from imagen_jax.prepare import origins
from imagen_jax.prepare.pictures import Rules
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    survey = origins.survey(Path(path))
    for part in survey.parts:
        list(origins.Pictures(survey.origin, Rules(1, 100)).examples(part))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_memory_stays_small_whatever_a_file_promises(tmp_path):
    put(tmp_path / "a", {"a.png": png(), "a.txt": "", "b.png": png(), "b.txt": "b"})
    for name in ("a.txt", "b.png"):
        os.truncate(tmp_path / "a" / name, 2**33)
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(GOOD + member("a.png", png()) + header("a.json", 2**32))
        file.seek(2**32, 1)
        file.write(header("x", 2**32, tarfile.XHDTYPE))
        file.truncate(2**34)
    command = [sys.executable, "-c", BOMBS, str(tmp_path / "a"), str(tmp_path / "x.tar")]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(root)})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 200


@pytest.mark.parametrize(
    "limits, reason",
    [
        (Limits(pixels=80), "too large: 9x9 pixels, more than 80"),
        (Limits(seconds=-1), "too large: more than -1 s to decode"),
        (Limits(image_bytes=50), "too large: .* bytes, more than 50"),
    ],
)
def test_a_picture_beyond_the_limits_is_left_out(limits, reason):
    found = [pictures.Found("a.png", png(), ("a",))]
    (row,) = pictures.Rules(1, 100, limits=limits).records(found)
    assert re.fullmatch(reason, f"{row.reason}: {row.detail}")
    (_,) = pictures.Rules(1, 100, limits=Limits(pixels=81)).records(found)


def test_checks_say_how_much_it_is():
    with pytest.raises(Unusable, match="501 bytes, more than 500"):
        LIMITS.check_image(501)
    with pytest.raises(Unusable, match="4, more than 3"):
        LIMITS.check_captions("abcd")
