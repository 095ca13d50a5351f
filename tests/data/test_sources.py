"""Data sets on disk: read back exactly, wrong ones refused."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.data import checksums, sources, transforms
from imagen_jax.prepare.records import write_records


def record(i, claims=False):
    image = transforms.encode_png(np.full((4, 4, 3), i % 256, np.uint8))
    example = {"image": image, "caption": f"número {i}"}
    return example | {"claims": json.dumps({"i": i})} if claims else example


def write(directory, num=5, claims=False):
    splits = {"train": (record(i, claims) for i in range(num)), "test": [record(99, claims)]}
    return write_records(splits, directory, name="toy", description="Toy.")


def test_source_can_be_sent_to_other_processes(tmp_path):
    write(tmp_path / "a")
    source = sources.open_source(tmp_path / "a", "train")
    assert pickle.loads(pickle.dumps(source))[3] == source[3]


def test_imports_are_light():
    code = (
        "import sys, imagen_jax.data.sources, imagen_jax.data.pipeline, imagen_jax.prepare.folder\n"
        "bad = {'tensorflow', 'tensorflow_datasets', 'grain'} & set(sys.modules)\n"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is here")
def test_works_quietly_without_tensorflow(tmp_path):
    code = (
        "from imagen_jax.data import sources\n"
        "from imagen_jax.prepare.records import write_records\n"
        "records = [{'image': b'x', 'caption': 'y'}]\n"
        "write_records({'train': records}, 'a', name='a', description='')\n"
        "print(sources.open_source('a', 'train')[0])"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
    )
    assert (done.stdout, done.stderr) == ("{'image': b'x', 'caption': 'y'}\n", "")


def test_opening_says_what_exists(tmp_path):
    write(tmp_path / "a")
    cases = [
        (("a", "validation"), {}, r"split must be one of .*: train \(5\), test \(1\); got 'validation'"),
        (("b", "train"), {}, "b must be a data set; got no such path"),
        ((".", "train"), {}, "got no dataset_info.json in it: did you mean .*a?"),
        (
            ("a", "train"),
            {"caption_key": "text"},
            r"a feature of Text in .*; got 'text', it has .*caption \(Text\)",
        ),
        (
            ("a", "train"),
            {"image_key": "caption"},
            "a feature of Image in .*; got 'caption', .*--data.image-key",
        ),
    ]
    for (directory, split), options, message in cases:
        with pytest.raises(ValueError, match=message):
            sources.open_source(tmp_path / directory, split, **options)


def test_a_feature_in_a_dict_is_to_be_prepared():
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(), "about": {"caption": tfds.features.Text()}}
    )
    with pytest.raises(
        ValueError,
        match="'about/caption' of a must be one Text at the top; got Text in a dict: prepare it with",
    ):
        sources._check_features("a", features, "image", "about/caption")


def test_a_version_may_stand_between(tmp_path):
    write(tmp_path / "toy" / "1.0.0")
    assert len(sources.open_source(tmp_path / "toy", "train")) == 5
    assert sources.splits(tmp_path / "toy") == ["train", "test"]
    write(tmp_path / "toy" / "2.0.0")
    with pytest.raises(
        ValueError, match=r"must have one version; got 1.0.0, 2.0.0: name one, such as .*toy/\d.0.0\."
    ):
        sources.open_source(tmp_path / "toy", "train")


def test_splits_without_records_are_one_line(tmp_path):
    write(tmp_path / "a")
    for split, message in (
        ("train[:0]", r"got 'train\[:0\]' of .*a, which is empty"),
        ("train[2:2]", "is empty"),
        ("train[x]", r"must be a name or slice of TFDS; got 'train\[x\]' of"),
        ("train[:5", "must be a name or slice of TFDS"),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            sources.open_source(tmp_path / "a", split)
        assert "\n" not in str(raised.value)
    (tmp_path / "a" / checksums.FILE).unlink()
    info = tmp_path / "a" / "dataset_info.json"
    known = json.loads(info.read_text())
    for split in known["splits"]:
        split["shardLengths"] = [] if split["name"] == "test" else split["shardLengths"]
    info.write_text(json.dumps(known))
    with pytest.raises(ValueError, match="got 'test' of .*a, which is empty"):
        sources.open_source(tmp_path / "a", "test")
    assert sources.splits(tmp_path / "a") == ["train"]


def test_damaged_data_sets_are_refused(tmp_path):
    write(tmp_path / "a")
    next((tmp_path / "a").glob("toy-train*")).unlink()
    with pytest.raises(ValueError, match="must have all its files; got no .*toy-train"):
        sources.open_source(tmp_path / "a", "train")
    (tmp_path / "a" / checksums.FILE).unlink()
    info = tmp_path / "a" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="array_record"):
        sources.open_source(tmp_path / "a", "test")
    info.write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        sources.open_source(tmp_path / "a", "test")
