"""What a data set can be made from: each kind read exactly, whatever is broken listed and counted."""

import io
import json
import os
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from imagen_jax.data import shards, sources
from imagen_jax.prepare import parquet, pictures, tar_index, webdataset


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("prepare_data")


def encoded(i, form="PNG", size=(10, 9)):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 255, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def huge(width=40000, height=40000):
    """A sound PNG header that promises 1.6 billion pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + encoded(0)[33:]


def make_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def prepare(script, root, output, **options):
    script.main(script.Options(output=output, input=root, **{"min_size": 8, "num_workers": 1} | options))
    return contents(output), rows(output)


def contents(output, split="train"):
    source = sources.open_source(output, split)
    return [(source[i]["caption"], source[i]["image"]) for i in range(len(source))]


def rows(output):
    lines = (output / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return [(row["file"], row["reason"]) for row in map(json.loads, lines)]


# ---- archives ----


def test_archives_are_read_as_webdataset_has_them(tmp_path, script, monkeypatch):
    good = [encoded(i) for i in range(8)]
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
        ("b/12.jpg", encoded(12, "JPEG")),
        ("b/12.png", encoded(12)),
        ("b/13.png", good[0]),
        ("b/13.json", b'{"caption": "\\ud800"}'),
        ("b/._14.png", b"hidden"),
    ]
    make_tar(tmp_path / "in" / "sub" / "x.tar", members)
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
    pairs = [encoded(i) for i in range(2)]
    members = [("1.seg.png", b"-"), ("1.orig.png", pairs[0]), ("1.json", b'{"alt": "one", "caption": "no"}')]
    root = make_tar(tmp_path / "x.tar", members)
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
    root = make_tar(tmp_path / "x.tar", [("1.png", encoded(1)), ("1.Caption", b"one"), ("1.json", b"{}")])
    with pytest.raises(ValueError, match="the extension of the captions, with --caption-key"):
        prepare(script, root, tmp_path / "no")
    kept, left_out = prepare(script, root, tmp_path / "out", caption_key=".caption")
    assert kept == [("one", encoded(1))] and not left_out


def test_nothing_behind_an_end_mark_is_lost_silently(tmp_path, script):
    good = [encoded(i, size=(40, 40)) for i in range(6)]
    members = [(f"{i}.{e}", c) for i in range(6) for e, c in (("txt", b"%d" % i), ("png", good[i]))]
    one = make_tar(tmp_path / "one.tar", members[:6]).read_bytes()
    two = make_tar(tmp_path / "two.tar", members[6:]).read_bytes()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.tar").write_bytes(one + two)
    kept, left_out = prepare(script, tmp_path / "a", tmp_path / "out_a")
    assert [caption for caption, _ in kept] == list("012345") and not left_out

    whole = make_tar(tmp_path / "b" / "x.tar", members).read_bytes()
    with tarfile.open(tmp_path / "b" / "x.tar") as tar:
        places = [member.offset for member in tar]
    hole = bytearray(whole)
    hole[places[4] : places[7] + 600] = bytes(places[7] + 600 - places[4])  # ends within a picture
    (tmp_path / "b" / "x.tar").write_bytes(hole)
    kept, left_out = prepare(script, tmp_path / "b", tmp_path / "out_b")
    assert [caption for caption, _ in kept] == ["0", "1"] and left_out == [("x.tar", "damaged archive")]

    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.tar").write_bytes(whole[: places[6]] + bytes(30 * 1024))
    kept, left_out = prepare(script, tmp_path / "c", tmp_path / "out_c")
    assert [caption for caption, _ in kept] == list("012") and left_out == [("x.tar", "damaged archive")]


def test_a_member_with_holes_does_not_cost_the_others(tmp_path, script):
    good = [encoded(i) for i in range(3)]
    make_tar(
        tmp_path / "in" / "x.tar",
        [(f"{i}.{e}", c) for i in (0, 2) for e, c in (("txt", b"x"), ("png", good[i]))],
    )
    data = (tmp_path / "in" / "x.tar").read_bytes()
    info = tarfile.TarInfo("1.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:410] = b"%011o\0%011o\0" % (2**30, 512)  # one piece, far behind a hole
    head[483:495] = b"%011o\0" % (2**30 + 512)
    head[148:156] = b"%06o\0 " % sum(head[:148] + b" " * 8 + head[156:])
    (tmp_path / "in" / "x.tar").write_bytes(bytes(head) + bytes(range(256)) * 2 + data)
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    assert kept == [("x", good[0]), ("x", good[2])] and left_out == [("x.tar:1.png", "unreadable file")]


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
        (tmp_path / "in" / f"{name}.png").write_bytes(encoded(i))
    (tmp_path / "in" / "captions.csv").write_bytes(table.encode("utf-8", "surrogateescape"))
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    assert [caption for caption, _ in kept] == expected and [file for file, _ in left_out] == left


def test_a_json_line_that_is_no_object_is_not_taken_for_a_reason(tmp_path, script):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encoded(0))
    (tmp_path / "in" / "captions.jsonl").write_text('"a text"\n')
    with pytest.raises(ValueError, match="its first line is a str, where each should be an object"):
        prepare(script, tmp_path / "in", tmp_path / "out")


def test_texts_beside_pictures_are_found_however_they_are_written(tmp_path, script):
    (tmp_path / "in").mkdir()
    for name in ("\u00e9.txt", "b.TXT", "b.txt"):
        (tmp_path / "in" / name).write_text(name)
    for name in ("e\u0301.png", "b.png"):
        (tmp_path / "in" / name).write_bytes(encoded(1))
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    assert sorted(caption for caption, _ in kept) == ["b.txt", "\u00e9.txt"]
    assert left_out == [("b.TXT", "caption without picture")]


def test_inputs_without_any_picture_say_so(tmp_path, script):
    tarfile.open(tmp_path / "x.tar", "w").close()
    with pytest.raises(
        ValueError, match="must have a usable picture for .*; got none: there are no pictures"
    ):
        prepare(script, tmp_path / "x.tar", tmp_path / "out")


def test_texts_of_parquet_are_of_any_type(tmp_path, script):
    kinds = (pa.string_view(), pa.list_(pa.string(), 1), pa.binary())
    for i, kind in enumerate(kinds):
        texts = pa.array(
            [["one"]] if i == 1 else ["one"], pa.list_(pa.string(), 1) if i == 1 else pa.string()
        )
        table = pa.table({"image": [encoded(i)], "text": texts if i == 1 else texts.cast(kind)})
        pq.write_table(table, tmp_path / f"{i}.parquet")
        key = {"caption_key": "text"} if i == 2 else {}
        kept, _ = prepare(script, tmp_path / f"{i}.parquet", tmp_path / f"out{i}", **key)
        assert kept == [("one", encoded(i))]
    table = pa.Table.from_arrays(
        [pa.array([encoded(0)]), pa.array(["a"]), pa.array(["b"])], ["image", "text", "text"]
    )
    pq.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match="one column called text; got 2"):
        prepare(script, tmp_path / "twice.parquet", tmp_path / "out")


def test_of_a_damaged_archive_what_lies_before_stays(tmp_path, script):
    good = [encoded(i) for i in range(6)]
    members = [(f"{i}.{e}", c) for i in range(6) for e, c in (("txt", b"%d" % i), ("png", good[i]))]
    whole = make_tar(tmp_path / "x.tar", members).read_bytes()
    headers = [whole.index(f"{i}.png\0".encode()) for i in range(6)]
    rng = np.random.default_rng(0)
    cuts = [*rng.integers(headers[1] + 1024, len(whole) - 10240, 12), headers[3], headers[3] + 512]
    ends = [header + 512 + len(image) for header, image in zip(headers, good, strict=True)]
    cases = [(whole[:cut], sum(end <= cut for end in ends)) for cut in cuts]
    cases.append((whole[: headers[4] + 3] + b"\xff" + whole[headers[4] + 4 :], 4))  # a wrong checksum
    for content, readable in cases:
        (tmp_path / "x.tar").write_bytes(content)
        groups, damage = tar_index.index(tmp_path / "x.tar", "x.tar")
        assert [row.reason for row in damage] == ["damaged archive"]
        assert [key for key, found in groups if "png" in found] == [str(i) for i in range(readable)]
    make_tar(tmp_path / "in" / "sound.tar", members)
    (tmp_path / "in" / "cut.tar").write_bytes(whole[: headers[3] + 600])
    (tmp_path / "in" / "no.tar").write_bytes(b"no archive")
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    assert [caption for caption, _ in kept] == [*"012", *"012345"]
    assert left_out == [
        ("cut.tar:3.txt", "caption without picture"),
        ("cut.tar", "damaged archive"),
        ("no.tar", "damaged archive"),
    ]


def test_whatever_is_in_the_pictures_all_are_counted(tmp_path, script):
    """Kept and left out together are what was found, for random damage of all sorts."""
    rng = np.random.default_rng(1)
    members, num = [], 60
    for i in range(num):
        data = bytearray(encoded(i, ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")[i % 6]))
        kind = rng.integers(5)
        if kind == 1:
            data = data[: rng.integers(len(data))]
        elif kind == 2:
            for place in rng.integers(0, len(data), 5):
                data[place] = rng.integers(256)
        elif kind == 3:
            data = bytearray(
                [b"", b"text", huge(), huge(2**31 - 1, 2**31 - 1), encoded(i, size=(3, 3))][i % 5]
            )
        members.append((f"{i}.jpg", bytes(data)))
        caption = [b"fine", b"", b"\xff", b'{"caption": [1]}'][rng.integers(4)]
        members.append((f"{i}.{'json' if caption.startswith(b'{') else 'txt'}", caption))
    make_tar(tmp_path / "in" / "x.tar", members)
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    assert len(kept) + len(left_out) == num and len({file for file, _ in left_out}) == len(left_out)
    reasons = {reason for _, reason in left_out}
    assert reasons == {"undecodable", "too small", "too large", "no caption", "unreadable caption"}


# ---- tables ----


def test_parquet_as_img2dataset_and_hugging_face_write_it(tmp_path, script, monkeypatch):
    good = [encoded(i) for i in range(5)]
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
    table = pa.table({"image": [encoded(0)], "text": ["one"], "status": ["published"]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert prepare(script, tmp_path / "a.parquet", tmp_path / "out") == ([("one", encoded(0))], [])


def test_of_a_damaged_table_what_can_be_read_stays(tmp_path, script):
    images = [encoded(i) if i != 30 else b"text" for i in range(40)]
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


# ---- TFDS ----


def tfds_records(num, first=0):
    """Records of a data set like coco_captions, made by TFDS itself, and what is in them."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import example_serializer

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "image/filename": tfds.features.Text(),
            "captions": tfds.features.Sequence(
                {"id": tfds.features.Scalar(dtype=np.int64), "text": tfds.features.Text()}
            ),
        }
    )
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    records, truth = [], []
    for i in range(first, first + num):
        captions, image = [f"{i} a", f"{i} ü"][: 1 + i % 2], encoded(i)
        example = {
            "image": image,
            "image/filename": f"{i}.png",
            "captions": {"id": list(range(len(captions))), "text": captions},
        }
        records.append(serializer.serialize_example(features.encode_example(example)))
        truth += [(caption, image) for caption in captions]
    return features, records, truth


def make_tfds(directory, features, kind, files):
    """Metadata for {split: numbers of records}, as TFDS writes it; returns the paths by split."""
    import tensorflow_datasets as tfds

    directory.mkdir(parents=True)
    identity = tfds.core.DatasetIdentity(
        name="coco", version="1.0.0", data_dir=str(directory), module_name=""
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    info.set_file_format(kind)
    splits = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=lengths,
            num_bytes=1,
            filename_template=tfds.core.ShardedFileTemplate(
                dataset_name="coco", data_dir=str(directory), split=split, filetype_suffix=kind
            ),
        )
        for split, lengths in files.items()
    ]
    info.set_splits(tfds.core.SplitDict(splits))
    info.write_to_directory(str(directory))
    return {split.name: split.filepaths for split in splits}


def write_records(path, records):
    writer = shards.SplitWriter(lambda i: path)
    for record in records:
        writer.add(record)
    writer.close()


def test_tfds_data_sets_of_any_splits_and_strings_by_name(tmp_path, script, monkeypatch):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import example_serializer

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "caption": tfds.features.Tensor(shape=(), dtype=np.str_),
            "lines": tfds.features.Translation(["en", "de"]),
        }
    )
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    captions = {"testA": ["one"], "train-clean": ["two", "three"], "val": [""]}
    paths = make_tfds(
        tmp_path / "home" / "toy_set" / "1.0.0",
        features,
        "array_record",
        {k: [len(v)] for k, v in captions.items()},
    )
    for split, those in captions.items():
        examples = [
            {"image": encoded(1), "caption": each, "lines": {"en": "en", "de": "de"}} for each in those
        ]
        records = [serializer.serialize_example(features.encode_example(each)) for each in examples]
        write_records(paths[split][0], records)
    with pytest.raises(
        ValueError, match=f"the name of a TFDS data set in {tmp_path / 'home'}; got toy_sett: "
    ):
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "home"))
        prepare(script, Path("toy_sett"), tmp_path / "out")
    for name in ("toy_set", "toy_set:1.0.0"):
        script.main(script.Options(output=tmp_path / name, input=Path(name), min_size=8))
        assert [caption for caption, _ in contents(tmp_path / name, "train-clean")] == ["two", "three"]
        assert [caption for caption, _ in contents(tmp_path / name, "testA")] == ["one"]
        assert sources.splits(tmp_path / name) == ["testA", "train-clean"]
        assert rows(tmp_path / name) == [("coco-val.array_record-00000-of-00001:0", "no caption")]
    script.main(
        script.Options(output=tmp_path / "de", input=Path("toy_set"), min_size=8, caption_key="lines/de")
    )
    assert contents(tmp_path / "de", "val") == [("de", encoded(1))]

    path = make_tfds(tmp_path / "strings", features, "array_record", {"train": [1]})["train"][0]
    write_records(path, records[:1])
    assert sources.open_source(tmp_path / "strings")[0]["image"] == encoded(1)


def test_tfds_data_sets_keep_their_splits(tmp_path, script):
    features, records, truth = tfds_records(9)
    _, held_out, held_out_truth = tfds_records(2, first=20)
    root = tmp_path / "coco"
    paths = make_tfds(root / "1.0.0", features, "array_record", {"train": [6, 3], "val": [2]})
    for path, part in zip(
        [*paths["train"], *paths["val"]], [records[:6], records[6:], held_out], strict=True
    ):
        write_records(path, part)
    kept, left_out = prepare(script, root, tmp_path / "out")
    assert kept == truth and left_out == []
    assert contents(tmp_path / "out", "val") == held_out_truth
    with pytest.raises(ValueError, match=r"with a TFDS data set, whose splits are kept \(train, val"):
        prepare(script, root, tmp_path / "no", test_fraction=0.1)
    with pytest.raises(
        ValueError, match=r"must have the Text feature 'alt'; got .*captions/text \(Sequence\(Text\)"
    ):
        prepare(script, root, tmp_path / "no", caption_key="alt")
    message = "captions/text' of .* must be one Text at the top; got Sequence.*prepare it with .* --input"
    with pytest.raises(ValueError, match=message):
        sources.open_source(root, "train", caption_key="captions/text")

    first = paths["train"][0]
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    kept, left_out = prepare(script, root, tmp_path / "cut")
    after = [pair for pair in truth if pair[0].split()[0] in "678"]
    assert kept == truth[: len(kept) - len(after)] + after
    assert [reason for _, reason in left_out] == ["damaged archive"]
    write_records(first, records[:5])  # one record fewer than the metadata promise
    kept, left_out = prepare(script, root, tmp_path / "short")
    assert [caption.split()[0] for caption, _ in kept] == [
        i for i in "01234678" for _ in range(1 + int(i) % 2)
    ]
    assert left_out == [(first.name, "damaged archive")]
    first.unlink()
    with pytest.raises(ValueError, match=r"must have all its files; got no .*coco-train"):
        prepare(script, root, tmp_path / "no")


def test_of_a_damaged_record_file_the_other_records_stay(tmp_path, script):
    features, records, truth = tfds_records(9)
    path = make_tfds(tmp_path / "in", features, "array_record", {"train": [9]})["train"][0]
    write_records(path, records)
    content = bytearray(path.read_bytes())
    content[content.find(records[4][:20]) + 60 if records[4][:20] in content else len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    ((where, reason),) = left_out
    lost = where.rpartition(":")[2]
    assert reason == "damaged archive"
    assert kept == [pair for pair in truth if pair[0].split()[0] != lost] and len(kept) < len(truth)


def test_tfrecord_is_refused_with_the_command_that_converts_it(tmp_path, script):
    make_tfds(tmp_path / "in", tfds_records(1)[0], "tfrecord", {"train": [1]})
    for call in (
        lambda: prepare(script, tmp_path / "in", tmp_path / "out"),
        lambda: sources.open_source(tmp_path / "in"),
    ):
        with pytest.raises(
            ValueError, match="in must be stored as array_record; got tfrecord: .*tfds convert_format"
        ):
            call()


def test_the_configuration_of_a_tfds_data_set_is_pointed_at(tmp_path, script):
    features, _, _ = tfds_records(1)
    make_tfds(tmp_path / "coco" / "2014" / "1.0.0", features, "array_record", {"train": [1]})
    with pytest.raises(ValueError, match="did you mean .*coco/2014/1.0.0"):
        prepare(script, tmp_path / "coco", tmp_path / "out")


def test_tfds_without_text(tmp_path, script):
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
    )
    make_tfds(tmp_path / "in", features, "array_record", {"train": [2], "test": []})
    for call in (
        lambda: prepare(script, tmp_path / "in", tmp_path / "out"),
        lambda: sources.open_source(tmp_path / "in"),
    ):
        with pytest.raises(
            ValueError, match=r"must have a feature of text.*image \(Image\), label \(ClassLabel\)"
        ):
            call()


# ---- what is there ----


def test_inputs_that_are_none_are_told_apart(tmp_path, script):
    root = tmp_path / "in"
    root.mkdir()
    (root / "x.tar.gz").write_bytes(b"")
    with pytest.raises(
        ValueError, match="must have pictures.*got none: x.tar.gz is compressed, which is not read, unpack"
    ):
        prepare(script, root, tmp_path / "out")
    with pytest.raises(ValueError, match="must be a folder or a .tar or .parquet file"):
        prepare(script, root / "x.tar.gz", tmp_path / "out")
    make_tar(root / "x.tar", [("a.png", encoded(0)), ("a.txt", b"a")])
    (root / "a.png").write_bytes(encoded(0))
    with pytest.raises(
        ValueError, match=r"got pictures and .tar archives \(a.png, x.tar\): move all but one"
    ):
        prepare(script, root, tmp_path / "out")
    (root / "x.tar").unlink()
    (root / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="--caption-key must name a column .*; got alt: remove it"):
        prepare(script, root, tmp_path / "out", caption_key="alt")
    (root / "a.txt").unlink()
    (root / "captions.jsonl").write_text('{"file": "a.png", "alt": "x"}\n{"file": "a.png", "alt": [1]}\n[]\n')
    with pytest.raises(
        ValueError, match=r"must have rows with a file .* its columns are file \(str\), alt \(list"
    ):
        prepare(script, root, tmp_path / "out")
    kept, left_out = prepare(script, root, tmp_path / "out", caption_key="alt")
    assert kept == [("x", encoded(0))]
    assert [reason for _, reason in left_out] == ["unknown format"] + ["unusable table row"] * 2


def test_pixels_are_counted_before_they_are_decoded(monkeypatch):
    def never(*arguments):
        raise AssertionError("decoded")

    monkeypatch.setattr(pictures.transforms, "decode", never)
    with pytest.raises(pictures.Unusable, match="too large: 40000x40000 pixels"):
        pictures.normalized(huge(), 64)
