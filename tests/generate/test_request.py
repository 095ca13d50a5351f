"""Requests: the jobs of prompts and seeds, and a request that is repeated from a record."""

import dataclasses
import hashlib

import pytest

from imagen_jax.generate import records, request
from tests.generate.conftest import RECORD


@pytest.fixture
def recorded(tmp_path):
    """A record whose workdir and image exist."""
    (tmp_path / "run").mkdir()
    (tmp_path / "photo.png").write_bytes(b"photo")
    file = records.InputFile(str(tmp_path / "photo.png"), hashlib.sha256(b"photo").hexdigest())
    return dataclasses.replace(RECORD, workdir=str(tmp_path / "run"), image=file)


def test_a_request_from_a_record(recorded, tmp_path):
    asked = request.repeating(recorded)
    assert asked.jobs == [(RECORD.prompt, RECORD.seed)] * 8 and (asked.start, asked.stop) == ("base", "sr16")
    assert (asked.size, asked.outpaint, asked.negative, asked.fsdp) == ((6, 4), (25, 0, 0, 10), "", 2)
    assert asked.inputs == {"image": tmp_path / "photo.png"} and asked.checkpoints == RECORD.checkpoints
    moved = tmp_path / "moved.png"
    (tmp_path / "photo.png").rename(moved)
    (tmp_path / "run").rename(tmp_path / "other")
    again = request.repeating(recorded, workdir=tmp_path / "other", inputs={"image": moved}, batch_size=1)
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
        request.repeating(recorded, **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "seed", "num", "expected"),
    [
        (["a", "b"], 5, 2, [("a", 5), ("a", 6), ("b", 5), ("b", 6)]),
        (["a"], 2**32 - 2, 2, [("a", 2**32 - 2), ("a", 2**32 - 1)]),
        (["a"], 2**32 - 2, 3, "--seed must be at most 4294967293"),
        (["a"], 2**32, 1, "--seed must be at most 4294967295"),
        (["a"], -1, 1, "--seed must be at least 0"),
        (["a"], 2**64 + 1, 1, "--seed must be at most"),
        (["a"], 0, 0, "--num must be at least 1"),
        (["a"], 0, -5, "--num must be at least 1"),
        (["a"], 0, 10**23, "--num must be at most 100000"),
        (["a"], 0, 10**9, "--num must be at most 100000"),
        (["a", "b", "c"], 0, 33334, "--num must be at most 33333"),
        (["a"] * 100_001, 0, 1, "prompts must be at most 100000"),
    ],
)
def test_jobs(prompts, seed, num, expected):
    if isinstance(expected, list):
        assert request.jobs(prompts, seed, num) == expected
    else:
        with pytest.raises(ValueError, match=f"^{expected}"):
            request.jobs(prompts, seed, num)
