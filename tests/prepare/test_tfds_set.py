"""Data sets of TFDS: their splits and strings by name, and damaged record files."""

from pathlib import Path

import numpy as np
import pytest

from imagen_jax.data import shards, sources
from tests.prepare.conftest import contents, prepare, random_picture, rows

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
        captions, image = [f"{i} a", f"{i} ü"][: 1 + i % 2], random_picture(i)
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
            {"image": random_picture(1), "caption": each, "lines": {"en": "en", "de": "de"}} for each in those
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
    assert contents(tmp_path / "de", "val") == [("de", random_picture(1))]

    path = make_tfds(tmp_path / "strings", features, "array_record", {"train": [1]})["train"][0]
    write_records(path, records[:1])
    assert sources.open_source(tmp_path / "strings")[0]["image"] == random_picture(1)


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
