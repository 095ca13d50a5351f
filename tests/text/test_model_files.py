"""Files of a model's directory: what is missing, broken or of another kind is one line."""

import json
import struct

import pytest

from imagen_jax.text import model_files, pretrained
from imagen_jax.text.encoder import TextEncoder


def test_a_directory_is_hash_checked_when_asked(directory):
    right = model_files.file_hash(directory / "model.safetensors")
    assert pretrained.resolve(directory, sha256=right) == directory
    with pytest.raises(ValueError, match=f"sha256 {'0' * 64}; got {right}"):
        TextEncoder.from_pretrained(directory, sha256="0" * 64)


def test_incomplete_directories_are_refused(directory):
    file, config = directory / "model.safetensors", directory / "config.json"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="must be a safetensors file"):
        TextEncoder.from_pretrained(directory)
    file.rename(directory / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match="got only pytorch_model.bin.*run `imagen-jax convert"
    ):
        TextEncoder.from_pretrained(directory)
    (directory / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match="must hold model.safetensors"):
        TextEncoder.from_pretrained(directory)
    (directory / "vocab.txt").unlink()
    with pytest.raises(ValueError, match="must hold its tokenizer"):
        TextEncoder.from_pretrained(directory)
    config.write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match="model_type must be one of .*got 'gpt2'"):
        TextEncoder.from_pretrained(directory)
    config.unlink()
    with pytest.raises(ValueError, match="must hold config.json"):
        TextEncoder.from_pretrained(directory)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_broken_json_is_named(directory, file, content):
    if "index" in file:
        (directory / "model.safetensors").unlink()
    (directory / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{directory / file} must "):
        TextEncoder.from_pretrained(directory)


@pytest.mark.parametrize("where", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_without_a_map_is_named(directory, where):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps(where))
    with pytest.raises(ValueError, match="index.json must hold weight_map"):
        TextEncoder.from_pretrained(directory)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe{", b"\x80", b"[" * 100_000]
    + [b'{"a": ' * 100_000, b'{"a": ' + b"1" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_what_is_no_json_object_is_named(content, file, model):
    directory = model("tiny_bert")
    (directory / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{directory / file} must ") as error:
        TextEncoder.from_pretrained(directory)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def header(content, data=b"", length=None):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def entry(start=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        header(b"{}", length=2**60), header(b"{}", length=2**64 - 1), header(b"{}", length=10**8), b"", b"\0" * 7,
        header({"a": entry(), "b": entry(4, 12)}, bytes(12)),
        header({"a": entry(8, 16)}, bytes(16)),
        header({"a": entry(8, 0)}, bytes(8)),
        header({"a": entry(0, 2**62)}, bytes(8)),
        header({"a": entry(shape=(2**62, 2**62))}, bytes(8)),
        header({"a": entry(shape=(-2,))}, bytes(8)),
        header({"a": entry(shape=("2",))}, bytes(8)),
        header({"a": entry(dtype="F33")}, bytes(8)),
        header({"a": entry(dtype=5)}, bytes(8)),
        header({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        header({"a": []}), header([1]), header(b"null"),
        header(b'{"\xff": ' + json.dumps(entry()).encode() + b"}", bytes(8)),
        header(b'{"\\ud800": ' + json.dumps(entry()).encode() + b"}", bytes(8)),
        header(b"[" * 100_000), header(b'{"a":' * 100_000),
        header({"a": entry()}, bytes(4)), header({"a": entry()}, bytes(16)), header(b" " * (17 << 20)),
    ],
)  # fmt: skip
def test_hostile_headers_are_one_line(content, model):
    directory = model("tiny_bert")
    path = directory / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} must be a safetensors file; ") as error:
        TextEncoder.from_pretrained(directory)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_weights_without_a_tensor_lack_the_first(model):
    directory = model("tiny_bert")
    (directory / "model.safetensors").write_bytes(header({}))
    with pytest.raises(ValueError, match="must fit the weights, whose longest axis has 0"):
        TextEncoder.from_pretrained(directory)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b", "..", "."])
def test_shards_lie_beside_their_index(name, model):
    directory = model("tiny_bert")
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="must name files beside it|must name shards that exist"):
        TextEncoder.from_pretrained(directory)
