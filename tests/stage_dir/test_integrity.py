"""What does not belong together in a checkpoint is named."""

import json
import os
import shutil
import socket

import pytest

from imagen_jax.config import to_dict
from imagen_jax.storage import files
from tests.stage_dir.conftest import CONFIG, as_pipe, outcome, resume, sample, values

# What tensorstore's threads find closed, once the first array has failed (scripts do not print it).
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def exchange(folder, name):
    other = folder.parent / "5"
    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()
    copy = shutil.copytree if (other / name).is_dir() else shutil.copy
    copy(other / name, folder / name)


def edit_record(folder, **changes):
    file = folder / "data/metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def drop_record_key(folder, key):
    file = folder / "data/metadata"
    content = json.loads(file.read_text())
    del content[key]
    file.write_text(json.dumps(content))


# What is done to the checkpoint of step 10 -> who notices: "s" sampling, "r" resuming
DELIBERATE = {
    "ema_params of another step": (lambda f: exchange(f, "ema_params"), "sr"),
    "state of another step": (lambda f: exchange(f, "state"), "r"),
    "record of another step": (lambda f: exchange(f, "data"), "sr"),
    "array files of another step": (lambda f: exchange(f, "ema_params/ocdbt.process_0"), "sr"),
    "index of another step": (lambda f: exchange(f, "ema_params/manifest.ocdbt"), "sr"),
    "the whole of another step": (lambda f: [exchange(f, name) for name in ("ema_params", "state", "data")], "sr"),
    "record without checksums": (lambda f: drop_record_key(f, "arrays"), "sr"),
    "record without its own checksum": (lambda f: drop_record_key(f, "checksum"), "sr"),
    "record with a checksum less": (lambda f: edit_record(f, arrays={}), "sr"),
    "record of another position": (lambda f: edit_record(f, position={"next_index": 9}), "sr"),
    "record that is a list": (lambda f: (f / "data/metadata").write_text("[]"), "sr"),
    "record that is gone": (lambda f: (f / "data/metadata").unlink(), "sr"),
    "no record": (lambda f: shutil.rmtree(f / "data"), "sr"),
    "no ema_params": (lambda f: shutil.rmtree(f / "ema_params"), "sr"),
    "no array files": (lambda f: shutil.rmtree(f / "ema_params/ocdbt.process_0/d"), "sr"),
    "empty array files": (
        lambda f: [file.write_bytes(b"") for file in (f / "ema_params/ocdbt.process_0/d").iterdir()], "sr",
    ),
    "configuration of another network": (
        lambda f: files.write_json(
            f / "config/metadata", to_dict(CONFIG) | {"image_size": 16}), "s",
    ),
    "no configuration": (lambda f: shutil.rmtree(f / "config"), "s"),
    "a pipe for an array file": (lambda f: as_pipe(values(f, "ema_params/conv/kernel")[0]), "sr"),
    "a pipe for the record": (lambda f: as_pipe(f / "data/metadata"), "sr"),
    "a pipe for the index": (lambda f: as_pipe(f / "ema_params/manifest.ocdbt"), "sr"),
    "a socket for the metadata": (lambda f: as_socket(f / "ema_params/_METADATA"), "sr"),
}  # fmt: skip


def as_socket(file):
    file.unlink()
    here = os.getcwd()
    os.chdir(file.parent)  # names of sockets are short
    try:
        socket.socket(socket.AF_UNIX).bind(file.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize(("change", "noticed"), DELIBERATE.values(), ids=DELIBERATE)
def test_what_does_not_belong_together_is_named(workdir, caplog, change, noticed):
    expected = {use: use(workdir) for use in (sample, resume)}
    change(workdir / "base/checkpoints/10")
    for use, letter in ((sample, "s"), (resume, "r")):
        result, message = outcome(use, workdir, expected[use], caplog)
        assert result == ("named" if letter in noticed else "no effect"), message
