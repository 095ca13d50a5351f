"""Pickles are read without being run: whatever a hostile one asks for is refused."""

import collections
import os
import pickle
import shutil
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file

from imagen_jax.text import conversion, torch_file
from tests.conftest import GOLDENS
from tests.text.conftest import state_pickle


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
    "keys without end": (with_storage(b"\x80\x02}" + b")" + b"\x85" * 9 + b"Ns."), "keys that are no text"),
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
    with pytest.raises(ValueError, match=f"pytorch_model.bin must hold tensors alone.*({message})") as error:
        conversion.convert(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 800
    assert sorted(tmp_path.iterdir()) == before and not os.path.exists(MARKER)


def test_the_honest_pickle_of_these_cases_is_read(tmp_path):
    with_storage(changed(), np.arange(4, dtype=np.float32).tobytes())(tmp_path / "pytorch_model.bin")
    torch_file.convert(tmp_path, tmp_path)
    found = load_file(tmp_path / "model.safetensors")["w"]
    np.testing.assert_array_equal(found, [[0, 1], [2, 3]])
