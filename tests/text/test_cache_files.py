"""Damage of an embedding cache: each is an error that names a file, or has no effect."""

import subprocess
import sys

import numpy as np
import pytest

from imagen_jax.text import cache_description, cache_files, cache_rows
from imagen_jax.text.cache import EmbeddingCache
from tests.text.conftest import TWELVE, Fake, made

DAMAGE = ["bit", "bits", "cut", "random"]


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
def test_damage_is_named_or_without_effect(whole_cache, cache_copy, file, kind):
    directory, paths = cache_copy
    rng, found = np.random.default_rng(len(file)), 0
    paths = paths if file == "records" else [directory / Fake.fingerprint / cache_description.NAME]
    for i in range(12):
        path = paths[i % len(paths)]
        before = path.read_bytes()
        path.write_bytes(damaged(before, rng, kind))
        errors = read_all(directory, whole_cache[1])
        for error in errors:
            assert "\n" not in error and str(directory) in error
            assert "imagen-jax embed" in error or "build it again" in error or "get it again" in error
        found += bool(errors)
        path.write_bytes(before)
    assert not read_all(directory, whole_cache[1])
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
def test_a_damaged_record_is_named_and_embedded_again(whole_cache, cache_copy, number, caplog):
    directory, paths = cache_copy
    path = paths[1]
    path.write_bytes(change_byte(record_at(path, number))(path.read_bytes()))
    (error,) = read_all(directory, whole_cache[1])
    caption = TWELVE[5 + number]
    assert error.startswith(
        f"{caption!r} cannot be read: record {number} of {path} must match its checksum; it is damaged"
    )
    assert "run imagen-jax embed" in error
    encoder = Fake()
    cache = made(directory, encoder, repair=True)
    assert encoder.embedded == [caption] and len(cache) == len(TWELVE)
    assert f"1 captions in {path} are damaged; moved to damaged-{path.name}" in caplog.text
    assert path.with_name(f"damaged-{path.name}").is_file() and not path.exists()
    assert not read_all(directory, whole_cache[1])
    again = Fake()
    made(directory, again, repair=True)
    assert not again.embedded and len([*directory.glob("*/damaged-*")]) == 1


@pytest.mark.parametrize("share", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("is_last", [False, True])
def test_keys_that_end_in_zeros_survive_a_repair(tmp_path, share, is_last):
    """One caption in 256 has such a key."""
    every = [f"a star {i}" for i in range(4000)]
    zeros = [caption for caption in every if cache_rows.key_of(caption).endswith(b"\0")][:8]
    assert len(zeros) == 8
    captions = [*zeros, "a"]
    made(tmp_path, captions=captions)
    (path,) = tmp_path.glob("*/embeddings-*.array_record")
    number = captions.index(zeros[-1]) if is_last else len(zeros)
    path.write_bytes(change_byte(record_at(path, number))(path.read_bytes()))
    path = path.rename(path.with_name(f"embeddings-{share[0]:08x}.array_record"))
    encoder = Fake()
    cache = made(tmp_path, encoder, captions=captions, repair=True, share=share)
    assert encoder.embedded == [captions[number]] and len(cache) == len(captions)
    for caption in captions:
        assert np.isfinite(cache[caption]).all()


@pytest.mark.parametrize("share", [0, 1])
def test_whoever_finds_a_damaged_record_embeds_it_again(whole_cache, cache_copy, share):
    """Whatever its share: the others may have looked before."""
    directory, paths = cache_copy
    for path in paths:
        path.write_bytes(change_byte(record_at(path, 0))(path.read_bytes()))
    encoder = Fake()
    made(directory, encoder, repair=True, share=(share, 2))
    mine = [TWELVE[5 * i] for i, path in enumerate(paths) if int(path.stem[-8:], 16) % 2 == share]
    assert sorted(encoder.embedded) == sorted(mine)
    made(directory, repair=True, share=(1 - share, 2))
    assert not read_all(directory, whole_cache[1])


@pytest.mark.parametrize(
    "change",
    [lambda c: c[:-1], lambda c: b"", lambda c: c[: len(c) // 2], lambda c: bytes(len(c)), "keys"],
    ids=["cut by one", "empty", "cut", "zeros", "keys"],
)
def test_a_file_of_which_nothing_can_be_read_is_embedded_again(whole_cache, cache_copy, change, caplog):
    directory, paths = cache_copy
    path = paths[1]
    before = path.read_bytes()
    path.write_bytes((change_byte(record_at(path, 5)) if change == "keys" else change)(before))
    (error,) = read_all(directory, whole_cache[1])
    assert error.startswith(
        f"{path} must match its checksums; it is cut off or damaged: run imagen-jax embed"
    )
    files = {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=f"{path.name} must match its checksums"):
        made(directory)  # without repair nothing changes
    assert files == {file: file.read_bytes() for file in directory.rglob("*") if file.is_file()}
    encoder = Fake()
    made(directory, encoder, repair=True)
    assert sorted(encoder.embedded) == sorted(TWELVE[5:10])
    assert "embedded again" in caplog.text
    assert not read_all(directory, whole_cache[1])


FULL = """
import resource, signal, sys
import numpy as np
from imagen_jax.text import cache, cache_files

class Large:
    name, width, fingerprint, encode = "large", 1024, "large", print
    def encode_ragged(self, captions, batch_size):
        for i, _ in enumerate(captions):
            yield i, np.ones((16, 1024), np.float32)

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
cache_files._MAX_CAPTIONS = int(sys.argv[2])
cache.build(map(str, range(100)), Large(), sys.argv[1], dtype="float32")
"""


@pytest.mark.slow
def test_a_full_disk_is_named_and_leaves_no_unfinished_file(tmp_path):
    """Files above a limit cannot be written, as on a disk that is full."""
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    run = subprocess.run([*command, "50"], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    error = run.stderr.strip().splitlines()[-1]
    assert (
        error.startswith(f"OSError: {tmp_path / 'large'} cannot be written: ") and "free some space" in error
    )
    assert not [*tmp_path.glob("large/*.unfinished")] and not [*tmp_path.glob("large/*.array_record")]
    run = subprocess.run([*command, "10"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert len(EmbeddingCache.open(tmp_path, "large")) == 100
