"""Damage of an embedding cache: each is an error that names a file, or has no effect."""

import json
import pathlib
import shutil

import numpy as np
import pytest

from imagen_jax.text import cache_description, cache_files
from imagen_jax.text.cache import EmbeddingCache, build
from imagen_jax.text.cache_rows import key_of

CAPTIONS = [f"caption {i} of a {color} cat" for i in range(6) for color in ("red", "blue")]
DAMAGE = ["bit", "bits", "cut", "random"]


class Fake:
    """An encoder without a network: embeddings are drawn from each caption's letters."""

    name, fingerprint, width = "fake", "0123456789abcdef", 8

    def __init__(self):
        self.embedded = []

    def encode(self, captions):
        raise NotImplementedError

    def encode_ragged(self, captions, batch_size):
        for caption in captions:
            self.embedded.append(caption)
            rng = np.random.default_rng(list(caption.encode()))
            yield (
                captions.index(caption),
                rng.standard_normal((1 + len(caption) % 5, self.width)).astype("f4"),
            )


def make(directory, encoder=None, captions=CAPTIONS, **options):
    return build(captions, encoder or Fake(), directory, **options)


@pytest.fixture(scope="module", params=["float16", "int8"])
def whole(request, tmp_path_factory):
    """A cache of three files, of five, five and two captions, and all that is in it."""
    directory = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_files, "_MAX_CAPTIONS", 5)
        cache = make(directory, dtype=request.param)
    return directory, {caption: cache[caption] for caption in CAPTIONS}


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of it, and its files in the order of their captions."""
    directory = shutil.copytree(whole[0], tmp_path / "cache")
    records = cache_files.RecordFiles(directory / Fake.fingerprint)
    first = cache_files.Index(directory / Fake.fingerprint).locate([key_of(CAPTIONS[i]) for i in (0, 5, 10)])
    return directory, [records.path(int(location) >> 32) for location in first]


def damaged(content, rng, kind):
    content = bytearray(content)
    if kind in ("bit", "bits"):
        used = np.flatnonzero(
            np.frombuffer(bytes(content), np.uint8)
        )  # most of a small ArrayRecord file is padding
        for place in rng.choice(used, 1 if kind == "bit" else 4):
            content[place] ^= 1 << rng.integers(8)
    elif kind == "cut":
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


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("file", ["records", "description"])
def test_damage_is_named_or_without_effect(whole, copy, file, kind):
    directory, paths = copy
    rng, found = np.random.default_rng(len(file)), 0
    paths = paths if file == "records" else [directory / Fake.fingerprint / cache_description.NAME]
    for i in range(12):
        path = paths[i % len(paths)]
        before = path.read_bytes()
        path.write_bytes(damaged(before, rng, kind))
        errors = read_all(directory, whole[1])
        for error in errors:
            assert "\n" not in error and str(directory) in error
            assert "imagen-jax embed" in error or "build it again" in error or "get it again" in error
        found += bool(errors)
        path.write_bytes(before)
    assert not read_all(directory, whole[1])
    assert found >= (12 if file == "description" or kind in ("cut", "random") else 8)


def change_byte(place):
    def change(content):
        return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]

    return change


def record_at(path, number):
    """Where the bytes of a record begin in its file."""
    (content,) = cache_files.RecordFiles(path.parent).read(
        np.array([int(path.stem[-8:], 16) << 32 | number], np.uint64)
    )
    return path.read_bytes().index(content)


@pytest.mark.parametrize("number", [0, 3])
def test_a_damaged_record_is_named_and_embedded_again(whole, copy, number, caplog):
    directory, paths = copy
    path = paths[1]
    path.write_bytes(change_byte(record_at(path, number))(path.read_bytes()))
    (error,) = read_all(directory, whole[1])
    caption = CAPTIONS[5 + number]
    assert error.startswith(
        f"{caption!r} cannot be read: record {number} of {path} is damaged: its checksum differs"
    )
    assert "run imagen-jax embed" in error
    encoder = Fake()
    cache = make(directory, encoder, repair=True)
    assert encoder.embedded == [caption] and len(cache) == len(CAPTIONS)
    assert f"1 captions in {path} are damaged; moved to damaged-{path.name}" in caplog.text
    assert path.with_name(f"damaged-{path.name}").is_file() and not path.exists()
    assert not read_all(directory, whole[1])
    again = Fake()
    make(directory, again, repair=True)
    assert not again.embedded and len([*directory.glob("*/damaged-*")]) == 1


@pytest.mark.parametrize("share", [0, 1])
def test_whoever_finds_a_damaged_record_embeds_it_again(whole, copy, share):
    """Whatever its share: the others may have looked before."""
    directory, paths = copy
    for path in paths:
        path.write_bytes(change_byte(record_at(path, 0))(path.read_bytes()))
    encoder = Fake()
    make(directory, encoder, repair=True, share=(share, 2))
    mine = [CAPTIONS[5 * i] for i, path in enumerate(paths) if int(path.stem[-8:], 16) % 2 == share]
    assert sorted(encoder.embedded) == sorted(mine)
    make(directory, repair=True, share=(1 - share, 2))
    assert not read_all(directory, whole[1])


@pytest.mark.parametrize(
    "change",
    [lambda c: c[:-1], lambda c: b"", lambda c: c[: len(c) // 2], lambda c: bytes(len(c)), "keys"],
    ids=["cut by one", "empty", "cut", "zeros", "keys"],
)
def test_a_file_of_which_nothing_can_be_read_is_embedded_again(whole, copy, change, caplog):
    directory, paths = copy
    path = paths[1]
    before = path.read_bytes()
    path.write_bytes((change_byte(record_at(path, 5)) if change == "keys" else change)(before))
    (error,) = read_all(directory, whole[1])
    assert error.startswith(
        f"{path} is damaged: it is cut off, or a checksum differs; run imagen-jax embed"
    )
    files = {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        make(directory)  # without repair nothing changes
    assert files == {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    encoder = Fake()
    make(directory, encoder, repair=True)
    assert sorted(encoder.embedded) == sorted(CAPTIONS[5:10])
    assert "embedded again" in caplog.text
    assert not read_all(directory, whole[1])


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}'])
def test_a_broken_description_is_named(copy, content):
    directory, _ = copy
    path = directory / Fake.fingerprint / cache_description.NAME
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path} must "):
        make(directory)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.parent} must have the file {path.name}"):
        make(directory)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 9}, {"width": 0}, {"width": "8"}, {"width": True}, {"width": 10**18}, {"width": None}, {"dtype": []},
        {"dtype": "float64"}, {"dtype": None}, {"clean_captions": 0}, {"clean_captions": "no"},
        {"clean_captions": True},
        {"encoder": 5}, {"encoder": "another"}, {"format": "3"}, {"fingerprint": None}, {"checksum": 5}, {"more": 1},
    ],
)  # fmt: skip
def test_a_description_of_other_values_is_named(copy, change):
    directory, _ = copy
    path = directory / Fake.fingerprint / cache_description.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for use in (lambda: make(directory), lambda: EmbeddingCache.open(directory, Fake.fingerprint)):
        with pytest.raises(ValueError, match=f"{path} must ") as error:
            use()
        assert "\n" not in str(error.value)


def test_the_width_of_the_encoder_must_be_that_of_the_cache(copy):
    directory, _ = copy
    encoder = Fake()
    encoder.width = 9
    with pytest.raises(ValueError, match=f"{cache_description.NAME} must .*its width is 8, the encoder's 9"):
        make(pathlib.Path(directory), encoder)
