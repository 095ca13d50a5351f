"""Files of torch are read to the bit; damaged ones are an error, or read without effect."""

import io
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file

from imagen_jax.text import torch_file
from tests.conftest import GOLDENS

TORCH = GOLDENS / "torch"


def bytes_of(tensor):
    out = io.BytesIO()
    tensor.copy(out)
    return out.getvalue()


@pytest.mark.parametrize("file", ["odd.bin", "odd_legacy.bin"])
def test_what_torch_wrote(file):
    expected, found = load_file(TORCH / "values.safetensors"), torch_file.tensors(TORCH / file)
    assert set(found) == set(expected) and len(expected) == 18
    for name, tensor in found.items():
        assert tensor.shape == expected[name].shape and bytes_of(tensor) == expected[name].tobytes(), name


@pytest.mark.parametrize("file", ["odd.bin", "odd_legacy.bin"])
def test_damage_is_an_error_or_has_no_effect(file, tmp_path):
    """In the archive its checksums tell; the old format has none, but its structure must hold."""
    original, rng = (TORCH / file).read_bytes(), np.random.default_rng(0)
    expected = load_file(TORCH / "values.safetensors")
    refused = 0
    for i in range(75):
        content = bytearray(original)
        if i % 3:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
        else:
            del content[rng.integers(len(content)) :]
        (tmp_path / "pytorch_model.bin").write_bytes(content)
        try:
            written = torch_file.convert(tmp_path, tmp_path)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
            assert not (tmp_path / "model.safetensors").exists()
            continue
        found = load_file(written)
        written.unlink()
        if file == "odd.bin":
            for name in set(found) & set(expected):
                if found[name].shape == expected[name].shape and found[name].dtype == expected[name].dtype:
                    # Views of a part of a storage are not covered by its checksum; of these tensors only those.
                    if name not in ("part", "row"):
                        np.testing.assert_array_equal(found[name], expected[name])
    assert refused > 25


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../pytorch_model.bin"}, "must name files beside it; got '../pytorch_model.bin'"),
        ({"a": "/etc/passwd"}, "must name files beside it"),
        ({"a": "sub/x.bin"}, "must name files beside it"),
        ({"a": ".."}, "must name files beside it|must name shards that exist"),
        ({"a": "none.bin"}, "must name shards that exist; got none.bin"),
        ({"a": None}, "must hold weight_map"),
        ([], "must hold weight_map"),
    ],
)
def test_an_index_names_files_beside_it(weight_map, message, tmp_path):
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=message):
        torch_file.convert(tmp_path, tmp_path)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, monkeypatch):
    shutil.copy(TORCH / "odd.bin", tmp_path / "pytorch_model.bin")
    full = os.statvfs_result((4096, 4096, 10, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    with pytest.raises(ValueError, match="must have room for .* bytes; got 0"):
        torch_file.convert(tmp_path, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]
