"""Preparing data: broken inputs are listed, splits are stable, failures leave nothing."""

import io
import itertools
import json
import os

import numpy as np
import pytest
from PIL import Image

from imagen_jax import resize
from imagen_jax.data import sources, transforms
from imagen_jax.prepare import folder, pictures
from tests.prepare.conftest import found, picture, png, prepared, put, read, save


def quarantined(output):
    rows = [json.loads(line) for line in (output / "quarantine.jsonl").read_text().splitlines()]
    return {row["file"]: row["reason"] for row in rows}


def test_strange_pictures_are_used_and_broken_ones_listed(tmp_path, script, capsys):
    root, output = tmp_path / "in", tmp_path / "out"
    exif = Image.Exif()
    exif[0x0112] = 6
    grey = np.arange(70 * 80, dtype=np.uint16).reshape(70, 80) * 11
    palette = picture(5).quantize(8)
    save(root / "plain.png", picture(1))
    save(root / "plain.jpg", picture(2), quality=90)
    save(root / "turned.jpg", picture(3), exif=exif)
    save(root / "deep.png", Image.fromarray(grey))
    save(root / "grey.png", picture(4).convert("L"))
    save(root / "palette.png", palette, transparency=3)
    save(root / "cmyk.jpg", picture(6).convert("CMYK"))
    save(root / "sub" / "film.gif", palette, save_all=True, append_images=[palette])
    save(root / "UPPER.WEBP", picture(7), "größer\n\n  kleiner \n")
    good = [path.relative_to(root).as_posix() for path in root.rglob("*.*") if path.suffix != ".txt"]

    whole = save(root / "cut.png", picture(8)).read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    save(root / "text.jpg", picture(), format="PNG").write_text("I am no picture")
    save(root / "empty.png", picture()).write_bytes(b"")
    save(root / "tiny.png", picture(9, (80, 20)))
    save(root / "mute.png", picture(10), caption=None)
    save(root / "blank.png", picture(11), caption=" \n ")
    strange = save(root / os.fsdecode(b"name\xff.png"), picture(13))
    strange.write_bytes(whole[:50])  # a name that is not UTF-8
    save(root / "latin.png", picture(12)).with_suffix(".txt").write_bytes(b"\xff\xfe\xfa")
    (root / "LICENSE.txt").write_text("free")
    (root / ".hidden.png").write_text("hidden")

    script.main(script.Options(output=output, input=root))
    assert quarantined(output) == {
        "cut.png": "undecodable",
        "text.jpg": "undecodable",
        "empty.png": "undecodable",
        "tiny.png": "too small",
        "mute.png": "no caption",
        "blank.png": "no caption",
        "latin.png": "unreadable caption",
        "name\\udcff.png": "undecodable",
        "LICENSE.txt": "caption without picture",
    }
    printed = capsys.readouterr().out
    assert "undecodable: 4 (first: cut.png)" in printed and "10 train records" in printed
    examples = read(output)
    assert len(examples) == len(good) + 1  # one picture has two captions
    captions = [e["caption"] for e in examples]
    assert captions[:2] == ["größer", "kleiner"] and set(captions[2:]) == {"a thing"}
    assert sorted(e["image"].shape[:2] for e in examples)[-1] == (80, 70)  # the turned one
    stored = {sources.open_source(output)[i]["image"] for i in range(len(examples))}
    assert {(root / n).read_bytes() for n in ("plain.png", "plain.jpg")} <= stored
    assert (root / "turned.jpg").read_bytes() not in stored


def test_large_pictures_are_reduced(tmp_path, script):
    image = picture(1, (200, 100))
    save(tmp_path / "in" / "a.png", image)
    script.main(script.Options(output=tmp_path / "out", input=tmp_path / "in", max_size=80, min_size=40))
    (example,) = read(tmp_path / "out")
    assert example["image"].shape == (40, 80, 3)
    exact = resize.area(np.asarray(image), (40, 80))
    np.testing.assert_allclose(example["image"], exact, atol=0.51)


TABLES = {
    "captions.jsonl": '{"file": "a.png", "caption": "one"}\n'
    '{"image": "a.png", "text": "two"}\nbroken\n'
    '{"file_name": "./sub/b.png", "caption": "three"}\n{"file": "gone.png", "caption": "four"}\n',
    "metadata.csv": 'file_name,text\na.png,one\na.png,"two"\nsub/b.png,three\ngone.png,four\n',
    "captions.csv": "\ufeffimage,n,caption\na.png,1,one\na.png,2,two\nsub/b.png,3,three\n../up.png,4,four\n",
}


@pytest.mark.parametrize("name", TABLES)
def test_caption_tables(tmp_path, script, name):
    root, output = tmp_path / "in", tmp_path / "out"
    for i, file in enumerate(("a.png", "sub/b.png", "c.png")):
        save(root / file, picture(i), caption=None)
    save(tmp_path / "up.png", picture(9), caption=None)
    (root / name).write_text(TABLES[name], encoding="utf-8")
    script.main(script.Options(output=output, input=root))
    assert [e["caption"] for e in read(output)] == ["one", "two", "three"]
    reasons = quarantined(output)
    assert reasons["c.png"] == "no caption"
    assert "caption without picture" in reasons.values()
    if name.endswith("jsonl"):
        assert reasons["captions.jsonl:3"] == "unusable table row"


def test_splits_never_share_a_picture_and_are_stable(tmp_path, script):
    root, output = tmp_path / "in", tmp_path / "out"
    for i in range(40):
        save(root / f"{i}.png", picture(i), f"{i} first\n{i} second")
    options = {"input": root, "validation_fraction": 0.2, "test_fraction": 0.2}
    for i in range(40, 44):  # copies of the first picture under other names
        save(root / f"{i}.png", picture(0), f"{i} copy")
    script.main(script.Options(output=output, **options))
    captions = {
        split: {int(e["caption"].split()[0]) for e in read(output, split)}
        for split in ("train", "validation", "test")
    }
    for split, numbers in captions.items():
        for i in numbers:
            assert pictures.split_of((root / f"{i}.png").read_bytes(), 0.2, 0.2) == split
    assert sorted(itertools.chain.from_iterable(captions.values())) == list(range(44))
    assert sum(bool(numbers & {0, 40, 41, 42, 43}) for numbers in captions.values()) == 1


def test_failures_leave_nothing_and_say_why(tmp_path, script):
    root, output = tmp_path / "in", tmp_path / "out"
    cases = [
        ({"input": root}, "must be a folder"),
        ({}, "^One of --input, --icons and --shapes must be given; got"),
        ({"input": root, "shapes": "full"}, "^One of --input, --icons and --shapes must be given; got"),
        ({"input": root, "num_train": 3}, "--num-train must be left out with --input"),
        ({"shapes": "full", "max_size": 3}, "--max-size must be left out with --shapes"),
        ({"shapes": "full", "num_train": 0}, "--num-train must be at least 1"),
        ({"input": root, "min_size": 64, "max_size": 32}, "--min-size must be from 1 to --max-size 32; got 64"),
        ({"input": root, "validation_fraction": 0.6, "test_fraction": 0.5}, "below 1 together"),
        ({"shapes": "single", "num_train": 1, "name": "Ä"}, "lower-case"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            script.main(script.Options(output=output, **options))
    save(root / "a.png", picture()).write_text("broken")
    save(root / "b.png", picture(), caption=None)
    with pytest.raises(
        ValueError, match=r"no caption: 1 \(first: b.png, .*\), undecodable: 1 .*not a picture"
    ):
        script.main(script.Options(output=output, input=root))
    save(root / "b.png", picture())
    with pytest.raises(ValueError, match="must give the split 'validation'"):
        script.main(script.Options(output=output, input=root, validation_fraction=1e-9))
    with pytest.raises(ValueError, match="must be outside of --input"):
        script.main(script.Options(output=root / "out", input=root))
    (root / "captions.csv").write_text("file,caption\nb.png,x\n")
    with pytest.raises(ValueError, match="in a table or beside pictures; got captions.csv and.*a.txt"):
        script.main(script.Options(output=output, input=root))
    assert os.listdir(tmp_path) == ["in"]


def test_pictures_twice(tmp_path, script, capsys):
    root, output = tmp_path / "in", tmp_path / "out"
    save(root / "a.png", picture())
    script.main(script.Options(output=output, input=root))
    (root / "notes.md").write_text("has no say")
    before = {p.name: p.read_bytes() for p in output.iterdir()}
    script.main(script.Options(output=output, input=root))
    assert capsys.readouterr().out.endswith("is already there, nothing to do.\n")
    save(root / "b.png", picture(1))
    with pytest.raises(ValueError, match="made before the files of the input changed: choose another"):
        script.main(script.Options(output=output, input=root))
    assert {p.name: p.read_bytes() for p in output.iterdir()} == before
    assert sorted(os.listdir(tmp_path)) == ["in", "out"]


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about damaged TIFF tags
def test_random_bytes_never_crash():
    """Damaged pictures either decode or are refused by ValueError; nothing else comes out."""
    rng = np.random.default_rng(0)
    for form in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        buffer = io.BytesIO()
        picture(0, (24, 20)).save(buffer, form)
        for _ in range(25):
            data = bytearray(buffer.getvalue())
            for place in rng.integers(0, len(data), 4):
                data[place] = rng.integers(256)
            try:
                kept = pictures.normalized(bytes(data), 64)
            except ValueError:
                continue
            assert transforms.decode(kept).dtype == np.uint8


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


def in_folder(root, files):
    put(root, files)
    return folder.Folder(root), sorted(files)


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
    kept, left_out = found(*in_folder(tmp_path, files))
    assert kept == [("A.JPG", ("a",)), ("b.png", ("own",)), ("c.jfif", ("c",))]
    assert sorted(left_out) == [("b.txt", "caption without picture"), ("d.heic", "unknown format")]


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
    origin, files = in_folder(tmp_path, {"a.png": png(), name: content})
    with pytest.raises(ValueError, match=message) as raised:
        origin.plan(files)
    assert "\n" not in str(raised.value)
