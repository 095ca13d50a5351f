import dataclasses
import hashlib

import pytest

from imagen_jax.generate import records
from imagen_jax.generate.repeating import repeating
from tests.generate.conftest import RECORD


@pytest.fixture
def recorded(tmp_path):
    """A record whose workdir and image exist."""
    (tmp_path / "run").mkdir()
    (tmp_path / "photo.png").write_bytes(b"photo")
    file = records.InputFile(str(tmp_path / "photo.png"), hashlib.sha256(b"photo").hexdigest())
    return dataclasses.replace(RECORD, workdir=str(tmp_path / "run"), image=file)


def test_a_request_from_a_record(recorded, tmp_path):
    asked = repeating(recorded)
    assert asked.jobs == [(RECORD.prompt, RECORD.seed)] * 8 and (asked.start, asked.stop) == ("base", "sr16")
    assert (asked.size, asked.outpaint, asked.negative, asked.fsdp) == ((6, 4), (25, 0, 0, 10), "", 2)
    assert asked.inputs == {"image": tmp_path / "photo.png"} and asked.checkpoints == RECORD.checkpoints
    moved = tmp_path / "moved.png"
    (tmp_path / "photo.png").rename(moved)
    (tmp_path / "run").rename(tmp_path / "other")
    again = repeating(recorded, workdir=tmp_path / "other", inputs={"image": moved}, batch_size=1)
    assert again.workdir == tmp_path / "other" and again.inputs == {"image": moved} and len(again.jobs) == 1


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        (lambda d: (d / "photo.png").write_bytes(b"Photo"), {}, "--image must be the file .* has .*: give --image"),
        (lambda d: (d / "photo.png").write_bytes(b""), {}, "--image must be the file that the picture was made from"),
        (lambda d: (d / "photo.png").unlink(), {}, "--image must be the file .*photo.png does not exist: give --image"),
        (lambda d: (d / "run").rmdir(), {}, "--workdir must be the directory .*run does not exist: give --workdir"),
        (None, {"inputs": {"image": "run"}}, "--image must be a picture file; got .*run, which is a folder"),
        (None, {"inputs": {"image": "nowhere.png"}}, "--image must be .*nowhere.png does not exist"),
        (None, {"inputs": {"mask": "photo.png"}}, "--mask must be left out: the picture was made without"),
        (None, {"inputs": {"low_res": "photo.png"}}, "--low-res must be left out"),
        (None, {"batch_size": 0}, "--batch-size must be at least 1"),
        (None, {"batch_size": 10**23}, "--batch-size must be at most 65536"),
    ],
)  # fmt: skip
def test_what_has_changed_since_is_one_line(recorded, tmp_path, change, given, message):
    if change is not None:
        change(tmp_path)
    if "inputs" in given:
        given = {"inputs": {name: tmp_path / file for name, file in given["inputs"].items()}}
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        repeating(recorded, **given)
    assert "\n" not in str(caught.value)
