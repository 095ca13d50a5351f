"""The record in a PNG: what is written is read, and whatever else is there is one clear line."""

import dataclasses
import io
import json
import os
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagen_jax.config import SamplingConfig, to_dict
from imagen_jax.generate import records
from tests.generate.conftest import PIXELS, RECORD, SMALL
from tests.pictures import encoded

ADAPTERS = (records.AdapterFile("/adapters/ink", "ef" * 32, -0.5), records.AdapterFile("s3://a/b", "01" * 32, 1.0))


@pytest.mark.parametrize(
    "record",
    [
        RECORD,
        SMALL,
        dataclasses.replace(RECORD, adapters=ADAPTERS),
        dataclasses.replace(RECORD, text_encoder="/models/t5", text_dtype="int8"),
    ],
)
def test_what_is_written_is_read(tmp_path, record):
    path = tmp_path / "a.png"
    path.write_bytes(records.encode_png(PIXELS, record))
    again, pixels = records.read(path)
    assert again == record and list(again.sampling) == list(record.sampling)
    np.testing.assert_array_equal(pixels, PIXELS)
    shown = Image.open(path).info  # for other programs
    assert shown["prompt"] == record.prompt and shown["seed"] == str(record.seed)
    assert json.loads(shown["sampling"])["base"] == to_dict(record.sampling["base"])
    for name in ("adapters", "text_encoder", "text_dtype"):  # older versions read pictures without
        assert (name in json.loads(shown["imagen_jax"])) == bool(getattr(record, name))


def png(**texts):
    information, buffer = PngInfo(), io.BytesIO()
    for key, value in texts.items():
        information.add_itxt(key, value)
    Image.fromarray(PIXELS).save(buffer, "PNG", pnginfo=information)
    return buffer.getvalue()


def texts(**changes):
    """The text chunks of RECORD with others in their place; None takes one away."""
    found = Image.open(io.BytesIO(records.encode_png(PIXELS, RECORD))).info
    return {key: value for key, value in (found | changes).items() if value is not None}


def rest(**changes):
    """The chunk imagen_jax of RECORD with other fields; ... takes one away."""
    data = json.loads(texts()["imagen_jax"]) | changes
    return png(**texts(imagen_jax=json.dumps({k: v for k, v in data.items() if v is not ...})))


WHOLE = records.encode_png(PIXELS, RECORD)
AT = WHOLE.index(b"imagen_jax")
UNKNOWN = json.dumps({"base": to_dict(SamplingConfig()) | {"sampler": "x"}})
EMPTY_TEXT = b"\0\0\0\0tEXt" + zlib.crc32(b"tEXt").to_bytes(4, "big")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # what is no picture of this project
        (b"", "must be a PNG; .* is none"),
        (b"\x89PNG\r\n\x1a\n", "is damaged"),
        (encoded(PIXELS, "JPEG"), "must be a PNG; .* is none"),
        (encoded(PIXELS, "JPEG", comment=b"prompt: a star"), "must be a PNG"),
        (encoded(PIXELS, "WEBP", lossless=True), "must be a PNG"),
        (png(), "text chunks of other programs or none \\(none\\)"),
        (png(parameters="a star\nSteps: 20, Seed: 1"), "other programs or none \\(parameters\\)"),
        (png(prompt='{"3": {"class_type": "KSampler"}}', workflow="{}"), "or none \\(prompt, workflow\\)"),
        (png(Dream="a star", seed="1"), "or none \\(Dream, seed\\)"),
        # earlier versions of this project
        (png(prompt="a", seed="1", sampling="{}"), "one of an earlier version.* without negative, size, .*checkpoints"),
        (png(**texts(imagen_jax=None)), "one of an earlier version"),
        # a damaged file
        (WHOLE[: len(WHOLE) // 2], "is damaged"),
        (WHOLE[:-60], "is damaged .it is cut off."),
        (WHOLE[:33] + EMPTY_TEXT * 2**17 + WHOLE[33:], "is damaged .it has more than 65536 chunks."),
        (WHOLE[:-5], "is damaged .it is cut off."),
        (WHOLE[:AT] + b"I" + WHOLE[AT + 1 :], "is damaged"),
        (WHOLE[: AT + 60] + bytes([WHOLE[AT + 60] ^ 1]) + WHOLE[AT + 61 :], "is damaged"),
        # a damaged record
        (png(**texts(prompt=None)), "damaged record: text chunks must hold prompt"),
        (png(**texts(seed="-1")), "damaged record: seed must"),
        (png(**texts(seed="4294967296")), "damaged record: seed must be at most"),
        (png(**texts(seed="9" * 5000)), "damaged record: seed must"),
        (png(**texts(seed="²")), "damaged record: seed must"),
        (png(**texts(sampling="{")), "damaged record: sampling must be JSON"),
        (png(**texts(sampling="[" * 10**5)), "damaged record: sampling must be JSON"),
        (png(**texts(sampling="[]")), "damaged record: sampling must be a JSON object"),
        (png(**texts(sampling="{}")), "damaged record: checkpoints must have the stages of sampling"),
        (png(**texts(sampling='{"base": 5}')), "damaged record: sampling.base must be a JSON object"),
        (png(**texts(sampling='{"base": {"stepz": 5}}')), "damaged record: .*stepz"),
        (png(**texts(sampling=UNKNOWN)), "damaged record: sampling.base must .*: sampler must be one of .*; got 'x'"),
        (png(**texts(imagen_jax="null")), "damaged record: imagen_jax must be a JSON object"),
        (rest(format=2), "damaged record: format must be 1; got 2: use the version of imagen_jax that wrote it"),
        (rest(format=...), "damaged record: format must be a whole number"),
        (rest(row=...), "damaged record: .*\\['row'\\]"),
        (rest(cfg=7), "damaged record: .*\\['cfg'\\]"),
        (rest(row=8), "damaged record: row must be at most 7"),
        (rest(batch_size=10**9), "damaged record: batch_size must be at most 65536"),
        (rest(batch_size=True), "damaged record: batch_size must be a whole number"),
        (rest(fsdp=0), "damaged record: fsdp must be at least 1"),
        (rest(size=[6]), "damaged record: size must be 2 whole numbers"),
        (rest(size=[6, 4.0]), "damaged record: size must be a whole number"),
        (rest(size=[0, 4]), "damaged record: size must be at least 1"),
        (rest(size=[12, 8]), "must have the size that it records, 8x12 pixels; got 4x6"),
        (rest(outpaint=[1, 2, 3]), "damaged record: outpaint must be 4 whole numbers"),
        (rest(outpaint=[1, 2, 3, -1]), "damaged record: outpaint must be at least 0"),
        (rest(image="/photos/a b.png"), "damaged record: image must be a path and a sha256"),
        (rest(mask={"path": "a"}), "damaged record: mask must be a path and a sha256"),
        (rest(low_res={"path": 1, "sha256": ""}), "damaged record: low_res must be"),
        (rest(adapters={}), "damaged record: adapters must be a list of JSON objects with path, sha256 and"),
        (rest(adapters=[{"path": "a", "sha256": ""}]), "damaged record: adapters must be a list"),
        (rest(adapters=[{"path": "a", "sha256": "", "weight": "1"}]), "damaged record: adapters must be a list"),
        (rest(checkpoints=[1, 2]), "damaged record: checkpoints must be a JSON object"),
        (rest(checkpoints={"base": 5600}), "damaged record: checkpoints must have the stages"),
        (rest(checkpoints={"base": 5600, "sr16": 1.5}), "damaged record: checkpoints.sr16 must be a whole number"),
        (rest(checkpoints={"base": 5600, "sr16": "1"}), "damaged record: checkpoints.sr16 must be a step or a sha256"),
        (rest(workdir=None), "damaged record: workdir must be a str"),
        (rest(encoder=7), "damaged record: encoder must be a str"),
        (rest(text_dtype="int4"), "damaged record: text_dtype must be one of float32, bfloat16, int8; got .int4"),
        (rest(negative=["a"]), "damaged record: negative must be a str"),
        (rest(negative="\ud800"), "damaged record: negative must be text"),
        (rest(versions={"jax": 1}), "damaged record: versions must be"),
    ],
)  # fmt: skip
def test_what_is_no_record_is_one_line(tmp_path, data, message):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^--from-png .*{message}") as caught:
        records.read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "must be a PNG file; got .* is a folder"),
        (os.mkfifo, "must be a PNG file; .* is a pipe"),
        (lambda path: path.symlink_to("/dev/zero"), "must be a PNG file; .* is a device"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**31), "must have at most"),
    ],
)
def test_what_is_no_file_is_not_read(tmp_path, make, message):
    make(tmp_path / "a.png")
    with pytest.raises(ValueError, match=f"^--from-png {message}"):
        records.read(tmp_path / "a.png")


def test_no_damage_is_silent(tmp_path):
    path, rng = tmp_path / "a.png", np.random.default_rng(0)
    pixels = rng.integers(0, 256, (*RECORD.size, 3), np.uint8)
    whole = records.encode_png(pixels, RECORD)
    for place, bit, is_cut in zip(
        rng.integers(len(whole), size=200),
        rng.integers(8, size=200),
        [False, False, False, True] * 50,
        strict=True,
    ):
        flipped = whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
        path.write_bytes(whole[:place] if is_cut else flipped)
        with pytest.raises(ValueError, match="^--from-png .*(is damaged|must be a PNG)") as caught:
            records.read(path)
        assert "\n" not in str(caught.value)


def test_text_that_unpacks_to_more_than_any_record(tmp_path):
    bomb = zlib.compress(b"a" * 2**23)
    chunk = b"zTXtprompt\0\0" + bomb
    chunk = (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    path = tmp_path / "a.png"
    path.write_bytes(WHOLE[:33] + chunk + WHOLE[33:])
    with pytest.raises(ValueError, match="is damaged"):
        records.read(path)


def test_comparing():
    later = dataclasses.replace(RECORD, devices="1 x cpu", batch_size=1)
    assert records.compare(RECORD, PIXELS, later, PIXELS) == "equal to the recorded picture to the bit"
    other = PIXELS.copy()
    other[0, 0, 0] ^= 1
    told = records.compare(RECORD, PIXELS, later, other)
    assert "in 1 of 72 values, by up to 1 of 255" in told
    assert "devices were 8 x cpu, are 1 x cpu; batch_size were 8, are 1" in told
    assert "none of versions, devices" in records.compare(RECORD, PIXELS, RECORD, other)
