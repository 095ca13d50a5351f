"""pytorch_model.bin to safetensors: the formats of torch, and files that are damaged or hostile."""

import collections
import io
import json
import os
import pathlib
import pickle
import runpy
import shutil
import struct
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file

from imagen_jax.text import conversion, pretrained, torch_file
from imagen_jax.text.encoder import TextEncoder

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
TORCH = GOLDENS / "torch"
ROOT = GOLDENS.parents[1]


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


@pytest.mark.parametrize("sources", [["odd.bin"], ["odd_legacy.bin"], ["sharded"]])
def test_a_directory_is_converted(sources, tmp_path):
    expected = load_file(TORCH / "values.safetensors")
    directory = tmp_path / "model"
    if sources == ["sharded"]:
        shutil.copytree(TORCH / "sharded", directory)
    else:
        directory.mkdir()
        shutil.copy(TORCH / sources[0], directory / "pytorch_model.bin")
    before = sorted(directory.iterdir())
    written = torch_file.convert(directory, directory)
    assert written == directory / "model.safetensors" and sorted(directory.iterdir()) == sorted(
        [*before, written]
    )
    found = load_file(written)
    assert set(found) == set(expected)
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)
    with pytest.raises(ValueError, match="must not have safetensors yet"):
        torch_file.convert(directory, directory)


def numpy_bin(tensors, path):
    """A file as torch.save writes it, of NumPy arrays."""
    with zipfile.ZipFile(path, "w") as archive:
        pieces = []
        for i, (name, values) in enumerate(tensors.items()):
            strides, steps = [], 1
            for size in reversed(values.shape):
                strides.insert(0, steps)
                steps *= size
            storage = ("storage", "FloatStorage", str(i), "cpu", values.size)
            pieces.append((name, storage, 0, values.shape, tuple(strides)))
            archive.writestr(f"archive/data/{i}", values.tobytes())
        archive.writestr("archive/data.pkl", state_pickle(pieces))


def state_pickle(pieces):
    """The pickle of a dictionary of tensors, written by hand: (name, storage, offset, shape, strides)."""
    out = io.BytesIO()
    pickler = pickle._Pickler(out, 2)
    out.write(b"\x80\x02}(")
    for name, (kind, cls, key, device, size), offset, shape, strides in pieces:
        save = lambda value: pickle._Pickler.save(pickler, value)
        save(name)
        out.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        save(kind)
        out.write(f"ctorch\n{cls}\n".encode())
        for value in (key, device, size):
            save(value)
        out.write(b"tQ")
        for value in (offset, shape, strides, False):
            save(value)
        out.write(b"ccollections\nOrderedDict\n)RtR")
    out.write(b"u.")
    return out.getvalue()


@pytest.fixture
def pickled_t5(tmp_path):
    """The tiny T5 with pytorch_model.bin alone, which has a decoder, as whole models do."""
    directory = shutil.copytree(GOLDENS / "tiny_t5_v1_1", tmp_path / "t5")
    tensors = load_file(directory / "model.safetensors")
    tensors["decoder.block.0.layer.0.SelfAttention.q.weight"] = np.ones((24, 32), np.float32)
    numpy_bin(tensors, directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()
    return directory


def run(*arguments):
    """Runs the script in this process; its exit status."""
    path = str(ROOT / "scripts/convert_weights.py")
    before, sys.argv = sys.argv, [path, *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv = before
    return stop.value.code


def test_a_pickled_encoder_is_one_step_away(pickled_t5, capsys):
    with pytest.raises(ValueError, match=f"run `imagen-jax convert --model {pickled_t5}`"):
        TextEncoder.from_pretrained(pickled_t5)
    assert run("--model", pickled_t5) in (0, None)
    assert f"{pickled_t5}/model.safetensors: written." in capsys.readouterr().out
    found = load_file(pickled_t5 / "model.safetensors")
    expected = load_file(GOLDENS / "tiny_t5_v1_1/model.safetensors")
    assert set(found) == set(expected)  # without the decoder
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)
    assert TextEncoder.from_pretrained(pickled_t5).token_ids(["a red cat"])


def test_a_name_on_the_hub_is_converted_into_a_directory(pickled_t5, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    calls = []

    def fake(name, revision=None, allow_patterns=None, ignore_patterns=None):
        calls.append((name, revision, allow_patterns))
        return str(pickled_t5)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    with pytest.raises(
        ValueError, match="imagen-jax convert --model t5-v1_1-xxl --output DIRECTORY.*NAME@REVISION"
    ):
        pretrained.resolve("t5-v1_1-xxl")
    assert run("--model", "t5-v1_1-xxl") == 2  # into the hub's cache
    assert "--output must be given" in capsys.readouterr().err
    output = tmp_path / "models" / "xxl"
    assert run("--model", "google/t5-v1_1-xxl@refs/pr/2", "--output", output) in (0, None)
    assert calls[-1][:2] == ("google/t5-v1_1-xxl", "refs/pr/2") and "pytorch_model*.bin" in calls[-1][2]
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert not (pickled_t5 / "model.safetensors").exists()
    assert TextEncoder.from_pretrained(output).width == 32
    before = (output / "model.safetensors").stat()
    assert run("--model", "google/t5-v1_1-xxl", "--output", output) == 2
    assert "must be a new directory" in capsys.readouterr().err
    assert (output / "model.safetensors").stat() == before


class Runs:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


TENSOR = ("w", ("storage", "FloatStorage", "0", "cpu", 4), 0, (2, 2), (2, 1))


def with_storage(data, storage=bytes(16), compression=zipfile.ZIP_STORED, name="archive/data/0"):
    def write(path):
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr(name, storage)

    return write


def changed(**change):
    """A pickle whose tensor differs from TENSOR in some parts."""
    names = ("name", "storage", "offset", "shape", "strides")
    return state_pickle([tuple(change.get(key, value) for key, value in zip(names, TENSOR, strict=True))])


def storage_of(**change):
    names = ("kind", "cls", "key", "device", "size")
    return changed(storage=tuple(change.get(key, value) for key, value in zip(names, TENSOR[1], strict=True)))


MARKER = "/tmp/imagen_jax_pickle_was_run"
HOSTILE = {
    "os.system": (with_storage(pickle.dumps(Runs(os.system, f"touch {MARKER}"), 2)), "posix.system"),
    "in a dictionary": (
        with_storage(pickle.dumps({"w": Runs(os.system, f"touch {MARKER}")}, 4)),
        "posix.system",
    ),
    "eval": (with_storage(pickle.dumps(Runs(eval, "1"), 2)), "__builtin__.eval"),
    "exec of protocol 5": (with_storage(pickle.dumps(Runs(exec, "1"), 5)), "builtins.exec"),
    "getattr": (with_storage(pickle.dumps(Runs(getattr, 1, "real"), 2)), "__builtin__.getattr"),
    "a module of its own": (with_storage(b"\x80\x02cevil\nrun\n)R."), "evil.run"),
    "torch.load": (with_storage(b"\x80\x02ctorch.serialization\nload\n)R."), "torch.serialization.load"),
    "another rebuild": (
        with_storage(b"\x80\x02ctorch._utils\n_rebuild_qtensor\n)R."),
        "_utils._rebuild_qtensor",
    ),
    "a name with dots": (with_storage(b"\x80\x04\x8c\x05torch\x8c\x0c_utils.eval_\x93."), "torch._utils.eval_"),
    "a class that is built": (with_storage(b"\x80\x02ctorch\nFloatStorage\n)\x81."), "instruction NEWOBJ"),
    "INST": (with_storage(b"(S'touch'\nios\nsystem\n."), "instruction STRING"),
    "an extension": (with_storage(b"\x80\x02\x82\x01."), "instruction EXT1"),
    "a storage is called": (with_storage(b"\x80\x02ctorch\nFloatStorage\n)R."), "a call of torch.FloatStorage"),
    "a list as state": (with_storage(pickle.dumps([1, 2], 2)), "dictionary of tensors; got list"),
    "a number as tensor": (with_storage(pickle.dumps({"w": 5}, 2)), "tensors alone; got int"),
    "no tensor": (with_storage(pickle.dumps({}, 2)), "dictionary of tensors"),
    "a counter": (with_storage(pickle.dumps(collections.Counter("a"), 2)), "collections.Counter"),
    "a dictionary of itself": (with_storage(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."), "tensors alone; got dict"),
    "keys without end": (with_storage(b"\x80\x02}" + b")" + b"\x85" * 9 + b"Ns."), "by something else than text"),
    "no stop": (with_storage(b"\x80\x02}"), "pickle"),
    "an empty stack": (with_storage(b"\x80\x02."), "damaged"),
    "a missing mark": (with_storage(b"\x80\x02}u."), "damaged"),
    "a missing memo": (with_storage(b"\x80\x02h\x07."), "damaged"),
    "a memo of 2^32": (with_storage(b"\x80\x02}r\xff\xff\xff\xff."), "dictionary of tensors"),
    "a text of 2^40": (with_storage(b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a."), "pickle|bytes|expected"),
    "a pickle of 5 MiB": (with_storage(bytes(5 << 20)), "at most"),
    "a pickle that unfolds": (with_storage(bytes(5 << 20), compression=zipfile.ZIP_DEFLATED), "at most"),
    "compressed bytes": (with_storage(changed(), compression=zipfile.ZIP_DEFLATED), "uncompressed"),
    "bytes missing": (with_storage(changed(), name="archive/data/1"), "bytes of w are missing"),
    "bytes too few": (with_storage(changed(), bytes(12)), "must be 16"),
    "a storage of 2^60": (with_storage(storage_of(size=2**60)), "unknown size"),
    "a storage of -4": (with_storage(storage_of(size=-4)), "unknown size"),
    "a storage of a path": (with_storage(storage_of(key="../../etc/passwd")), "are missing"),
    "a storage of no text": (with_storage(storage_of(key=7)), "unknown size"),
    "an unknown storage": (with_storage(storage_of(cls="ComplexFloatStorage")), "torch.ComplexFloatStorage"),
    "an offset beyond": (with_storage(changed(offset=1)), "beyond its storage"),
    "strides beyond": (with_storage(changed(strides=(3, 1))), "beyond its storage"),
    "strides back": (with_storage(changed(strides=(-1, 1))), "unknown size"),
    "one number without end": (with_storage(changed(shape=(10**12,), strides=(0,))), "beyond its storage"),
    "a shape of text": (with_storage(changed(shape=("a",), strides=(1,))), "unknown size"),
    "a shape of true": (with_storage(changed(shape=(True,), strides=(1,))), "unknown size"),
    "a shape without strides": (with_storage(changed(strides=())), "without a shape"),
    "no archive": (lambda path: path.write_bytes(b"nonsense" * 99), "unknown"),
    "an empty file": (lambda path: path.write_bytes(b""), "exhausted"),
    "another archive": (
        lambda path: zipfile.ZipFile(path, "w").writestr("a.txt", "a"),
        "must hold one data.pkl",
    ),
    "big-endian": (
        lambda path: zipfile.ZipFile(path, "w").writestr("a/data.pkl", b"")
        or zipfile.ZipFile(path, "a").writestr("a/byteorder", "big"),
        "little-endian",
    ),
    "an old pickle": (lambda path: path.write_bytes(pickle.dumps(Runs(os.system, f"touch {MARKER}"))), "posix.system"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.filterwarnings("ignore:.*ZipFile")
def test_hostile_pickles_are_refused_and_not_run(case, tmp_path, capsys):
    write, message = HOSTILE[case]
    shutil.copy(GOLDENS / "tiny_t5_v1_1" / "config.json", tmp_path)
    write(tmp_path / "pytorch_model.bin")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=f"pytorch_model.bin cannot be converted: .*({message})") as error:
        conversion.convert(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 800
    assert sorted(tmp_path.iterdir()) == before and not os.path.exists(MARKER)


def test_the_honest_pickle_of_these_cases_is_read(tmp_path):
    with_storage(changed(), np.arange(4, dtype=np.float32).tobytes())(tmp_path / "pytorch_model.bin")
    torch_file.convert(tmp_path, tmp_path)
    found = load_file(tmp_path / "model.safetensors")["w"]
    np.testing.assert_array_equal(found, [[0, 1], [2, 3]])


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
        ({"a": ".."}, "must name files beside it|not there"),
        ({"a": "none.bin"}, "shards that are not there: none.bin"),
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


def test_nothing_to_convert_is_told(tmp_path):
    with pytest.raises(ValueError, match="must hold pytorch_model.bin"):
        torch_file.convert(tmp_path, tmp_path)
    with pytest.raises(ValueError, match="must not have safetensors yet"):
        conversion.convert(GOLDENS / "tiny_bert")
