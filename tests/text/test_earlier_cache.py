"""Caches in the format before ArrayRecord, which goldens/make_earlier_cache_goldens.py wrote with that code."""

import pathlib
import shutil

import numpy as np
import pytest

from imagen_jax.text import cache_description, cache_files
from imagen_jax.text.cache import EmbeddingCache, build, describe

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens" / "earlier_cache"


class Letters:
    """The encoder of the goldens; embeds nothing unless it may."""

    name, fingerprint, width = "letters", "0123456789abcdef", 8

    def __init__(self):
        self.embedded = []

    def encode(self, captions):
        raise NotImplementedError

    def encode_ragged(self, captions, batch_size):
        for i, caption in enumerate(captions):
            self.embedded.append(caption)
            rng = np.random.default_rng(list(caption.encode()))
            yield i, rng.standard_normal((1 + len(caption) % 5, self.width)).astype(np.float32)


@pytest.fixture(params=["float16", "int8"])
def earlier(request, tmp_path):
    """(directory of a cache, its root, what the code of that time read from it)"""
    directory = shutil.copytree(GOLDENS / request.param, tmp_path / "cache")
    with np.load(GOLDENS / f"{request.param}.npz") as content:
        return directory, directory / Letters.fingerprint, dict(content)


def files(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def assert_equal(cache, expected):
    assert len(cache) == len(expected)
    for caption, values in expected.items():
        np.testing.assert_array_equal(cache[caption], values)


def test_it_is_converted_and_its_own_files_stay(earlier, capsys):
    directory, root, expected = earlier
    before = files(root)
    assert describe(directory) == ["0123456789abcdef (letters)"]
    with pytest.raises(
        ValueError, match=f"^{root} must be converted, .* run imagen-jax embed with the same"
    ):
        EmbeddingCache.open(directory, Letters.fingerprint)
    encoder = Letters()
    cache = build([*expected, "a new one"], encoder, directory)
    assert f"{root}: converted 12 embeddings of an earlier version" in capsys.readouterr().out
    assert encoder.embedded == ["a new one"] and cache.num_new == 1
    assert_equal(cache, expected | {"a new one": cache["a new one"]})
    assert before.items() <= files(root).items()
    for path in before:  # the message says that they may be deleted
        path.unlink()
    assert_equal(build([], encoder, directory), expected | {"a new one": cache["a new one"]})
    assert "converted" not in capsys.readouterr().out


def test_an_interrupted_conversion_continues(earlier):
    directory, root, expected = earlier
    build([], Letters(), directory)
    (root / cache_description.NAME).unlink()  # it is written at the end
    (root / "conversion-0.unfinished").touch()
    assert_equal(build([], Letters(), directory), expected)
    assert len([*root.glob(cache_files.PATTERN)]) == 1 and not [*root.glob("*.unfinished")]


@pytest.mark.parametrize(
    ("file", "change", "num_lost"),
    [
        ("shard-00001/tokens.bin", lambda content: bytes([content[0] ^ 1]) + content[1:], 1),
        ("shard-00001/tokens.bin", lambda content: content[:-1], 1),
        ("shard-00001/tokens.bin", lambda content: b"", 5),
        ("shard-00001/index.bin", lambda content: content[:-1], 5),
        ("shard-00001/index.bin", lambda content: content[:40] + b"\7" + content[41:], 5),
        ("tmp-killed/index.bin", lambda content: content[:-1], 1),
        ("tmp-killed/tokens.bin", lambda content: content[:-1], 1),
        ("tmp-killed/index.bin", lambda content: content[:32] + b"\xff" * 12 + content[44:], 1),  # start and length
    ],
)  # fmt: skip
def test_what_is_damaged_is_embedded_again(earlier, file, change, num_lost, caplog):
    directory, root, expected = earlier
    (root / file).write_bytes(change((root / file).read_bytes()))
    encoder = Letters()
    assert_equal(build([*expected], encoder, directory), expected)
    assert len(encoder.embedded) == num_lost
    if not len((root / file).read_bytes()) == 95:  # a row that was half written when the process was killed
        assert "embedded again" in caplog.text


def test_another_width_or_dtype_is_refused_and_nothing_changes(earlier):
    directory, root, expected = earlier
    before, encoder = files(root), Letters()
    with pytest.raises(ValueError, match="must be stored as .*, as it is; got dtype 'float32'"):
        build([*expected], encoder, directory, dtype="float32")
    encoder.width = 9
    with pytest.raises(ValueError, match="meta.json must describe .* its width is 8, the encoder's 9"):
        build([*expected], encoder, directory)
    (root / "meta.json").write_text("{")
    with pytest.raises(ValueError, match="meta.json must be JSON"):
        build([*expected], encoder, directory)
    assert files(root).keys() == before.keys()
