"""Damage of an embedding cache: each is an error that names a file, or has no effect."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from imagen_jax.text import cache as cache_lib
from imagen_jax.text.cache import EmbeddingCache, build

CAPTIONS = [f"caption {i} of a {color} cat" for i in range(6) for color in ("red", "blue")]


class Fake:
    """An encoder without a network: embeddings are drawn from each caption's letters."""

    name = description = "fake"
    fingerprint, width, clean_captions = "0123456789abcdef", 8, False

    def __init__(self):
        self.embedded = []

    def clean(self, caption):
        return caption

    def mostly_unknown(self, captions):
        return []

    def encode_ragged(self, captions, batch_size):
        for i, caption in enumerate(captions):
            self.embedded.append(caption)
            seed = np.frombuffer(caption.encode().ljust(64), np.uint32)
            yield i, np.random.default_rng(seed).standard_normal((1 + i % 5, self.width)).astype(np.float32)


def make(directory, encoder=None, captions=CAPTIONS, **options):
    return build(captions, encoder or Fake(), directory, progress=False, shard_size=5, **options)


@pytest.fixture(scope="module", params=["float16", "int8"])
def whole(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    cache = make(directory, dtype=request.param)
    return directory, {caption: cache[caption] for caption in CAPTIONS}


def without_checksums(directory):
    """As earlier versions wrote it."""
    root = directory / Fake.fingerprint
    meta = json.loads((root / "meta.json").read_text())
    del meta["checksum"]
    (root / "meta.json").write_text(json.dumps(meta))
    for file in root.glob("shard-*/index.crc32"):
        file.unlink()


def damaged(content, rng):
    content = bytearray(content)
    kind = rng.integers(4)
    if kind < 2:
        for _ in range(1 + 3 * kind):
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    elif kind == 2:
        del content[rng.integers(len(content)) :]
    else:
        content[rng.integers(len(content)) :] = rng.bytes(rng.integers(1, 80))
    return bytes(content)


def read_all(directory, expected):
    """The errors of opening and reading everything; asserts that what is read is right."""
    try:
        cache = EmbeddingCache.open(directory, Fake.fingerprint)
    except ValueError as error:
        return [str(error)]
    errors = []
    for caption, values in expected.items():
        try:
            np.testing.assert_array_equal(cache[caption], values)
        except ValueError as error:
            errors.append(str(error))
    return errors


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize("file", ["tokens.bin", "index.bin", "index.crc32", "meta.json"])
def test_damage_is_named_or_without_effect(whole, file, is_old, tmp_path):
    original, expected = whole
    directory = shutil.copytree(original, tmp_path / "cache")
    if is_old:
        without_checksums(directory)
        if file == "index.crc32":
            pytest.skip("earlier versions did not write it")
    root, rng = directory / Fake.fingerprint, np.random.default_rng(len(file))
    paths = [root / file] if file == "meta.json" else sorted(root.glob(f"shard-*/{file}"))
    found = 0
    for i in range(30):
        path = paths[i % len(paths)]
        before = path.read_bytes()
        after = damaged(before, rng)
        if after == before:
            continue
        path.write_bytes(after)
        errors = read_all(directory, expected)
        for error in errors:
            assert "\n" not in error and str(root) in error or str(directory) in error
            assert "embed_text.py" in error or "build it again" in error or "get it again" in error
        found += bool(errors)
        path.write_bytes(before)
    assert not read_all(directory, expected)
    # A cache of today misses nothing; of an older one the description in meta.json has no effect.
    assert found >= (28 if not is_old else 5)


def test_a_damaged_caption_is_named(whole, tmp_path):
    original, expected = whole
    directory = shutil.copytree(original, tmp_path / "cache")
    shard = directory / Fake.fingerprint / "shard-00001"
    content = bytearray((shard / "tokens.bin").read_bytes())
    content[-1] ^= 1
    (shard / "tokens.bin").write_bytes(content)
    (error,) = read_all(directory, expected)
    assert (
        error.startswith(f"caption 4 of {shard / 'tokens.bin'}, 'caption ")
        and "run scripts/embed_text.py" in error
    )


@pytest.mark.parametrize("is_old", [False, True])
@pytest.mark.parametrize(
    ("file", "change", "embedded", "aside"),
    [
        ("tokens.bin", lambda content: bytes([content[0] ^ 1]) + content[1:], 1, 0),
        ("tokens.bin", lambda content: bytes(len(content)), 5, 0),
        ("tokens.bin", lambda content: content[:-1], 5, 1),
        ("tokens.bin", lambda content: b"", 5, 1),
        ("index.bin", lambda content: content[:-1], 5, 1),
        ("index.bin", lambda content: content[:-48], 5, 1),
        ("index.bin", lambda content: content[:32] + b"\7" + content[33:], 5, 1),  # where the first begins
        ("index.bin", lambda content: content[:40] + b"\7" + content[41:], 5, 1),  # how long it is
    ],
)
def test_damage_is_embedded_again(whole, file, change, embedded, aside, is_old, tmp_path, capsys):
    original, expected = whole
    directory = shutil.copytree(original, tmp_path / "cache")
    if is_old:
        without_checksums(directory)
    root = directory / Fake.fingerprint
    path = root / "shard-00001" / file
    path.write_bytes(change(path.read_bytes()))
    assert read_all(directory, expected)
    encoder = Fake()
    cache = make(directory, encoder, repair=True)
    assert len(encoder.embedded) == embedded and len(cache) == len(CAPTIONS)
    assert len(list(root.glob("damaged-*"))) == aside
    assert "embedded again" in capsys.readouterr().out
    assert set(cache_lib._shards(root)) >= {root / "shard-00000", root / "shard-00002"}
    # The same captions, though of other batches: those of this encoder depend on their place in one.
    assert all(cache[caption].shape[1] == 8 for caption in CAPTIONS)
    again = Fake()
    make(directory, again, repair=True)
    assert not again.embedded


def test_without_repair_damage_is_an_error_and_nothing_changes(whole, tmp_path):
    original, _ = whole
    directory = shutil.copytree(original, tmp_path / "cache")
    path = directory / Fake.fingerprint / "shard-00001" / "index.bin"
    path.write_bytes(path.read_bytes()[:-48])
    before = {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match="shard-00001 is damaged"):
        make(directory)
    assert before == {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}


@pytest.mark.parametrize("name", ["index.crc32", "index.bin", "tokens.bin"])
def test_a_file_that_is_gone_is_named(whole, name, tmp_path):
    original, expected = whole
    directory = shutil.copytree(original, tmp_path / "cache")
    (directory / Fake.fingerprint / "shard-00000" / name).unlink()
    (error,) = read_all(directory, expected)
    assert "shard-00000 is damaged" in error


@pytest.mark.parametrize(
    "change",
    [
        {"width": 9}, {"width": 0}, {"width": "8"}, {"width": True}, {"width": 10**18}, {"width": None}, {"dtype": []},
        {"dtype": "float64"}, {"dtype": None}, {"clean_captions": 0}, {"clean_captions": "no"},
        {"clean_captions": True},
        {"encoder": 5}, {"encoder": "another"}, {"format": "2"}, {"fingerprint": None}, {"checksum": 5}, {"more": 1},
    ],
)  # fmt: skip
def test_a_meta_of_other_values_is_named(whole, change, tmp_path):
    directory = shutil.copytree(whole[0], tmp_path / "cache")
    path = directory / Fake.fingerprint / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for use in (lambda: make(directory), lambda: EmbeddingCache.open(directory, Fake.fingerprint)):
        with pytest.raises(ValueError, match=f"{path} must ") as error:
            use()
        assert "\n" not in str(error.value)


def test_a_half_written_shard_with_a_length_without_end_is_cut(whole, tmp_path):
    directory = shutil.copytree(whole[0], tmp_path / "cache")
    root = directory / Fake.fingerprint
    left = (root / "shard-00002").rename(root / "tmp-left")
    rows = np.fromfile(left / "index.bin", cache_lib._ROW)
    rows["length"][-1] = 2**32 - 1
    rows.tofile(left / "index.bin")
    encoder = Fake()
    cache = make(directory, encoder)
    assert len(encoder.embedded) == 1 and len(cache) == len(CAPTIONS)


def test_the_width_of_the_encoder_must_be_that_of_the_cache(whole, tmp_path):
    directory = shutil.copytree(whole[0], tmp_path / "cache")
    encoder = Fake()
    encoder.width = 9
    with pytest.raises(ValueError, match="meta.json must .*its width is 8, the encoder's 9"):
        make(pathlib.Path(directory), encoder)
