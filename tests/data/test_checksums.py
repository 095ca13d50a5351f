"""Flipped bits and cuts in every file of a data set: found and named, or without any effect."""

import os
import shutil

import numpy as np
import pytest

from imagen_jax.data import checksums, reader, sources
from tests.pictures import encoded

FILES = (
    "SHA256SUMS",
    "dataset_info.json",
    "features.json",
    "photos-train.array_record-00000",
    "photos-validation.array_record-00000",
    "prepared.json",
    "quarantine.jsonl",
)


def records(directory):
    """The records of each split; in the place of one that cannot be read, why."""
    found = {}
    for split in sources.splits(directory):
        source = sources.open_source(directory, split)
        found[split] = reader._read(source, range(len(source)))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory, load_script):
    root = tmp_path_factory.mktemp("damage")
    rng = np.random.default_rng(0)
    (root / "in").mkdir()
    for i in range(12):
        (root / "in" / f"{i}.png").write_bytes(encoded(rng.integers(0, 255, (64, 64, 3), np.uint8)))
        (root / "in" / f"{i}.txt").write_text(f"caption {i}\nanother {i}")
    (root / "in" / "left_out.png").write_bytes(b"no picture")
    script = load_script("prepare_data")
    options = script.Options(root / "photos", root / "in", validation_fraction=0.3, num_workers=1)
    script.main(options)
    assert tuple(sorted(path.name for path in options.output.iterdir())) == FILES
    return script, options, records(options.output)


@pytest.mark.parametrize("name", FILES)
def test_no_damage_is_used_silently(whole, tmp_path, name):
    _, options, expected = whole
    rng = np.random.default_rng(FILES.index(name))
    content = (options.output / name).read_bytes()
    filled = len(content.rstrip(b"\0"))
    shutil.copytree(options.output, tmp_path / "photos")
    named = 0
    for number in range(9):
        damaged = bytearray(content)
        place = int(rng.integers(filled))
        if number == 8:
            del damaged[place:]
        else:
            damaged[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "photos" / name).write_bytes(damaged)
        try:
            found = records(tmp_path / "photos")
        except ValueError as error:
            assert str(tmp_path / "photos") in str(error) and "\n" not in str(error)
            named += 1
            continue
        assert found.keys() == expected.keys()
        for split, those in found.items():
            assert len(those) == len(expected[split])
            for record, right in zip(those, expected[split], strict=True):
                assert isinstance(record, Exception) or record == right
        named += any(isinstance(record, Exception) for those in found.values() for record in those)
    assert named >= {"quarantine.jsonl": 0, "SHA256SUMS": 5}.get(name, 9 if name.endswith(".json") else 4)


@pytest.mark.parametrize("name", ["prepared.json", "quarantine.jsonl"])
def test_the_same_command_tells_of_damage(whole, name):
    script, options, _ = whole
    path = options.output / name
    content = path.read_bytes()
    try:
        path.write_bytes(content.replace(b"e", b"d", 1))
        with pytest.raises(ValueError, match=f"{name} must have its checksum"):
            script.main(options)
    finally:
        path.write_bytes(content)
    script.main(options)  # finds it there and ends well


def test_a_set_without_checksums_is_read(whole, tmp_path):
    _, options, expected = whole
    shutil.copytree(options.output, tmp_path / "photos")
    (tmp_path / "photos" / checksums.FILE).unlink()
    assert records(tmp_path / "photos") == expected
    info = tmp_path / "photos" / "dataset_info.json"
    info.write_text(info.read_text().replace("{SHARD_INDEX}", "{SHARD}"))
    with pytest.raises(ValueError, match="photos must have TFDS metadata; got damaged"):
        records(tmp_path / "photos")
    (tmp_path / "photos" / "features.json").unlink()
    os.mkfifo(tmp_path / "photos" / "features.json")
    with pytest.raises(ValueError, match="features.json must be a file"):
        records(tmp_path / "photos")
