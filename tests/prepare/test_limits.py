"""Limits of what is read of a picture, a text, a table and an archive, asked before it is read."""

import io
import os
import re
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagen_jax.prepare import origins, parquet, parquet_pages, pictures, quarantine, tar_index, text_files
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.quarantine import LeftOut, Unusable

LIMITS = Limits(image_bytes=500, caption_bytes=20, captions=3, page_bytes=10_000)
TEXT = 200  # bytes of a file, line or field


def png(i=0):
    buffer = io.BytesIO()
    Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(text_files, "MAX_BYTES", TEXT)


def put(root, files):
    root.mkdir(exist_ok=True)
    for name, content in files.items():
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def prepared(root, limits=LIMITS):
    """Captions of the records, and {file: reason} of what is left out."""
    survey = origins.survey(root, limits=limits)
    job = origins.Pictures(survey.origin, pictures.Rules(1, 100, limits=limits))
    items = [item for part in survey.parts for item in job.examples(part)]
    rows = [*survey.left_out, *(item for item in items if isinstance(item, LeftOut))]
    return [item[1]["caption"] for item in items if not isinstance(item, LeftOut)], {
        row.file: row.reason for row in rows
    }


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
    assert prepared(tmp_path) == ([*captions, "b"], reasons)


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
    assert prepared(tmp_path) == (["b", *captions], reasons)


def test_pictures_of_too_many_bytes_are_not_read(tmp_path):
    put(tmp_path / "a", {"a.png": png(), "a.txt": "a", "b.png": png(), "b.txt": "b"})
    os.truncate(tmp_path / "a" / "a.png", 2**40)
    assert prepared(tmp_path / "a") == (["b"], {"a.png": "too large"})
    with (tmp_path / "x.tar").open("wb") as file:
        file.write(member("b.png", png()) + member("b.txt", b"b") + member("a.txt", b"a"))
        file.write(header("a.png", 2**33))
        file.seek(2**33, 1)
        file.write(bytes(1024))
    assert prepared(tmp_path / "x.tar") == (["b"], {"x.tar:a.png": "too large"})
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
    assert prepared(tmp_path) == (["4", "5"], reasons)


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
    captions, left_out = prepared(tmp_path)
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
    captions, reasons = prepared(tmp_path)
    assert captions == ["b"] and reasons["x.tar"] in ("damaged archive", "too large")


# ---- parquet ----


def text(*values):
    return pa.array(values)


ONE = [png(0)] * 3
PARQUET = {
    "one long in a dictionary": (
        {"image": ONE, "caption": text("b", "a" * 21, "c").dictionary_encode()}, ["b", "c"], {1: "caption too long"}
    ),
    "one long": ({"image": ONE, "caption": text("b", "a" * 21, "c")}, ["b", "c"], {1: "caption too long"}),
    "bytes": ({"image": ONE, "caption": text("b", "é" * 11, "c")}, ["b", "c"], {1: "caption too long"}),
    "many": ({"image": ONE, "caption": [["b"], list("abcd"), ["c"]]}, ["b", "c"], {1: "too many captions"}),
    "the same": ({"image": ONE, "caption": [["b"], ["a"] * 9, ["c"]]}, ["b", "a", "c"], {}),
    "a large picture": ({"image": [ONE[0], b"x" * 501, ONE[0]], "caption": list("bac")}, ["b", "c"], {1: "too large"}),
    "a bomb of a caption": (
        {"image": ONE, "caption": text(*["a" * 3000] * 3).dictionary_encode()}, [], {0: "too large"}
    ),
    "texts": ({"image": ONE[:1], "caption": [["a"] * 300]}, [], {0: "too large"}),
    "a bomb of a picture": ({"image": [bytes(10_000)], "caption": ["a"]}, [], {0: "too large"}),
    "one for all rows": ({"image": [bytes(2000)] * 3, "caption": ["a"] * 3}, [], {0: "too large"}),
    "many in a page": ({"image": [png(i) for i in range(40)], "caption": ["b"] * 40}, ["b"] * 40, {}),
    "a dictionary of pictures": (
        {"image": pa.array([bytes(6000)] * 3).dictionary_encode(), "caption": list("abc")}, [], {0: "too large"}
    ),
    "rows": ({"image": pa.nulls(60, pa.binary()), "caption": ["a"] * 60}, [], {0: "too large"}),
}  # fmt: skip


@pytest.mark.parametrize("name", PARQUET)
def test_row_groups_are_read_within_limits(tmp_path, monkeypatch, name):
    for limit, value in (
        ("MAX_ROWS", 50),
        ("MAX_TEXTS", 200),
        ("TEXT_BYTES", 2000),
        ("DICTIONARY_BYTES", 5000),
    ):
        monkeypatch.setattr(parquet, limit, value)
    columns, expected, reasons = PARQUET[name]
    pq.write_table(pa.table(columns), tmp_path / "x.parquet", compression="zstd")
    pq.write_table(pa.table({"image": ONE[:1], "caption": ["last"]}), tmp_path / "y.parquet")
    left_out = {f"x.parquet:{row}": reason for row, reason in reasons.items()}
    assert prepared(tmp_path) == ([*expected, "last"], left_out)


@pytest.mark.parametrize(
    "options", [{}, {"data_page_version": "2.0"}, {"use_dictionary": False, "compression": "none"}]
)
def test_sizes_of_pages_are_what_arrow_reads(tmp_path, options):
    rng = np.random.default_rng(0)
    images = [rng.bytes(1000) for _ in range(50)]
    captions = [["a" * i] * (i % 4) or None for i in range(50)]
    options = {
        "data_page_size": 5000,
        "write_batch_size": 5,
        "row_group_size": 30,
        "write_statistics": True,
    } | options
    pq.write_table(
        pa.table({"n": range(50), "image": images, "caption": captions}), tmp_path / "a.parquet", **options
    )
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    with (tmp_path / "a.parquet").open("rb") as file:
        for number in range(2):
            group = metadata.row_group(number)
            image, caption = (parquet_pages.look(file, group, [name]) for name in ("image", "caption"))
            assert (image.values, caption.values) == (group.num_rows, group.column(2).num_values)
            assert group.num_rows * 1000 < image.total <= group.column(1).total_uncompressed_size
            assert 5000 < image.largest < image.total
            assert image.largest + 7 * 900 < image.cost < image.largest + 7 * 1100


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


# ---- limits as options ----


def test_limits_are_options(tmp_path, load_script):
    script = load_script("prepare_data")
    made = script.settings(
        script.Options(tmp_path / "out", tmp_path / "in", max_captions=2, max_caption_bytes=9)
    )
    assert (made["max_captions"], made["max_caption_bytes"], made["max_page_bytes"]) == (2, 9, 2**29)
    for options, message in (
        ({"max_captions": 0}, "--max-captions must be at least 1; got 0"),
        ({"max_image_bytes": 2**28 + 1}, "--max-image-bytes must be at most 268435456"),
        (
            {"max_pixels": 2**27 + 1},
            "--max-pixels must be at most 134217728, which training reads; got 134217729",
        ),
        ({"max_seconds": 61.0}, "--max-seconds must be at most 60.0, which training waits; got 61.0"),
        ({"max_seconds": float("nan")}, "--max-seconds must be at least 1; got nan"),
        ({"max_pixels": 0}, "--max-pixels must be at least 1; got 0"),
        (
            {"max_caption_bytes": TEXT + 1},
            "--max-caption-bytes must be at most 200, which a text file may have",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            script.settings(
                script.Options(tmp_path / "out", tmp_path / "in", **{"max_caption_bytes": 9} | options)
            )


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
