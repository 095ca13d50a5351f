import concurrent.futures
import fcntl
import json
import os
import pathlib
import pickle
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

from imagen_jax.text import cache as cache_lib
from imagen_jax.text.cache import EmbeddingCache, build
from imagen_jax.text.encoder import TextEncoder

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
SHORT = [f"a {color} {animal}" for color in ("red", "blue") for animal in ("cat", "dog")]
CAPTIONS = SHORT + [caption + " left" * 9 for caption in SHORT]


class Counting:
    """A TextEncoder that counts what it embeds, and dies after `dies_after` captions."""

    def __init__(self, encoder, dies_after=None):
        self._encoder, self._dies_after = encoder, dies_after
        self.embedded = []

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def encode_ragged(self, captions, batch_size):
        for i, embedding in self._encoder.encode_ragged(captions, batch_size):
            if len(self.embedded) == self._dies_after:
                raise KeyboardInterrupt
            self.embedded.append(captions[i])
            yield i, embedding


@pytest.fixture(scope="module")
def tiny():
    return TextEncoder.from_pretrained(GOLDENS / "tiny_bert")


def make(captions, encoder, directory, **options):
    return build(captions, encoder, directory, batch_size=2, progress=False, **options)


@pytest.mark.parametrize(("dtype", "relative"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float32", 0)])
def test_gives_what_the_encoder_gives(tiny, tmp_path, dtype, relative):
    cache = make(CAPTIONS, tiny, tmp_path, dtype=dtype, shard_size=4)
    assert len(cache) == len(CAPTIONS) and cache.width == 32 and cache.dtype == dtype
    for caption in CAPTIONS:
        text = tiny.encode([caption])
        expected = np.asarray(text.embeddings[0])[np.asarray(text.mask[0])]
        assert cache[caption].dtype == np.float32
        np.testing.assert_allclose(cache[caption], expected, rtol=relative, atol=1e-5)


def test_int8_has_a_scale_per_token(tiny, tmp_path):
    cache = make(CAPTIONS, tiny, tmp_path, dtype="int8")
    tokens = 0
    for caption in CAPTIONS:
        text = tiny.encode([caption])
        expected = np.asarray(text.embeddings[0])[np.asarray(text.mask[0])]
        tokens += len(expected)
        largest = np.abs(expected).max(axis=1, keepdims=True)
        assert (np.abs(cache[caption] - expected) <= largest / 254 * 1.0001 + 1e-5).all()
        np.testing.assert_allclose(np.abs(cache[caption]).max(axis=1, keepdims=True), largest, rtol=1e-5)
    assert cache.nbytes == tokens * (32 + 4) + len(CAPTIONS) * 48

    class Zeros(Counting):
        def encode_ragged(self, captions, batch_size):
            yield 0, np.zeros((2, 32), np.float32)

    zeros = make(["nothing"], Zeros(tiny), tmp_path / "zeros", dtype="int8")
    np.testing.assert_array_equal(zeros["nothing"], np.zeros((2, 32)))


def test_processes_share_the_captions(tiny, tmp_path):
    counting = [Counting(tiny) for _ in range(3)]
    for i, encoder in enumerate(counting):
        cache = make(CAPTIONS * 2, encoder, tmp_path, share=(i, 3))
    assert sorted(sum((encoder.embedded for encoder in counting), [])) == sorted(CAPTIONS)
    assert max(len(encoder.embedded) for encoder in counting) < len(CAPTIONS)
    assert all(caption in cache for caption in CAPTIONS)
    with pytest.raises(ValueError, match=r"share must be \(i, n\) with 0 <= i < n; got \(3, 3\)"):
        make(CAPTIONS, tiny, tmp_path, share=(3, 3))


def test_dirty_captions_are_known_by_what_they_say(tmp_path):
    encoder = Counting(TextEncoder.from_pretrained(GOLDENS / "tiny_bert", clean_captions=True))
    dirty = ["a&nbsp;red cat", "a red  cat www.cats.com", "a red cat"]
    cache = make(dirty, encoder, tmp_path)
    assert encoder.embedded == ["a red cat"] and len(cache) == 1
    for caption in dirty:
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache))[caption], cache["a red cat"])


def test_embeds_each_caption_once(tiny, tmp_path):
    counting = Counting(tiny)
    make(iter(CAPTIONS[:5] * 3), counting, tmp_path, shard_size=2)
    cache = make(CAPTIONS + CAPTIONS[::-1], counting, tmp_path, shard_size=2)
    assert sorted(counting.embedded) == sorted(CAPTIONS)
    assert len(cache) == len(CAPTIONS)


def test_a_killed_build_goes_on_behind_its_last_shard(tiny, tmp_path):
    dying = Counting(tiny, dies_after=5)
    with pytest.raises(KeyboardInterrupt):
        make(CAPTIONS, dying, tmp_path, shard_size=2)
    partial = EmbeddingCache.open(tmp_path, tiny.fingerprint)
    assert len(partial) == 5  # Two whole shards, and what had been written of the third.
    going_on = Counting(tiny)
    cache = make(CAPTIONS, going_on, tmp_path, shard_size=2)
    assert sorted(going_on.embedded) == sorted(c for c in CAPTIONS if c not in partial)
    whole = make(CAPTIONS, tiny, tmp_path / "whole", shard_size=2)
    for caption in CAPTIONS:
        np.testing.assert_array_equal(cache[caption], whole[caption])


KILLED = """
import os, signal, sys
from imagen_jax.text import cache
from imagen_jax.text.encoder import TextEncoder

class Dying:
    def __init__(self, encoder):
        self.encoder = encoder
    def __getattr__(self, name):
        return getattr(self.encoder, name)
    def encode_ragged(self, captions, batch_size):
        for number, found in enumerate(self.encoder.encode_ragged(captions, batch_size)):
            if number == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield found

encoder = TextEncoder.from_pretrained(sys.argv[1])
cache.build(sys.argv[3:], Dying(encoder), sys.argv[2], batch_size=2, progress=False)
"""


@pytest.fixture
def killed(tiny, tmp_path):
    """The directory of a cache whose builder was killed after five captions."""
    command = [sys.executable, "-c", KILLED, str(GOLDENS / "tiny_bert"), str(tmp_path), *CAPTIONS]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    (left,) = (tmp_path / tiny.fingerprint).glob("tmp-*")
    return tmp_path, left


def test_nothing_is_embedded_twice_after_a_hard_kill(tiny, killed):
    directory, _ = killed
    going_on = Counting(tiny)
    cache = make(CAPTIONS, going_on, directory)
    assert len(going_on.embedded) == len(CAPTIONS) - 5 == cache.num_new and len(cache) == len(CAPTIONS)
    whole = make(CAPTIONS, tiny, directory / "whole")
    for caption in CAPTIONS:
        np.testing.assert_allclose(cache[caption], whole[caption], rtol=2**-10, atol=1e-5)
    assert not list(directory.glob("*/tmp-*"))


@pytest.mark.parametrize("damage", ["cut tokens", "cut index", "wrong bytes"])
def test_what_was_half_written_is_embedded_again(tiny, killed, damage):
    directory, left = killed
    tokens, index = left / "tokens.bin", left / "index.bin"
    if damage == "cut tokens":
        tokens.write_bytes(tokens.read_bytes()[:-1])
    elif damage == "cut index":
        index.write_bytes(index.read_bytes()[:-1])
    else:  # a power cut: the file has its length, but not its content
        tokens.write_bytes(tokens.read_bytes()[:-64] + bytes(64))
    going_on = Counting(tiny)
    cache = make(CAPTIONS, going_on, directory)
    assert len(going_on.embedded) == len(CAPTIONS) - 4 and len(cache) == len(CAPTIONS)
    whole = make(CAPTIONS, tiny, directory / "whole")
    for caption in CAPTIONS:
        np.testing.assert_allclose(cache[caption], whole[caption], rtol=2**-10, atol=1e-5)


def test_what_a_living_process_writes_is_left_alone(tiny, killed):
    directory, left = killed
    beginning = left.with_name("tmp-beginning")  # has not even opened its files
    beginning.mkdir()
    with (left / "index.bin").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        cache = make(CAPTIONS, tiny, directory)
        assert left.is_dir() and beginning.is_dir() and len(cache) == len(CAPTIONS)
    os.utime(beginning, (0, 0))
    make(CAPTIONS, tiny, directory)
    assert not left.exists() and not beginning.exists()


def test_of_two_builders_of_a_share_one_waits(tiny, tmp_path):
    counting = [Counting(tiny), Counting(tiny)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda encoder: make(CAPTIONS, encoder, tmp_path, shard_size=2), counting))
    assert sorted(counting[0].embedded + counting[1].embedded) == sorted(CAPTIONS)


def test_a_complete_cache_needs_no_writing(tiny, killed, monkeypatch):
    directory, left = killed
    captions = [*make(CAPTIONS, tiny, directory)._heads]
    (left.parent / "tmp-old").mkdir()
    os.utime(left.parent / "tmp-old", (0, 0))

    real = pathlib.Path.open

    def refused(path, mode="r", *args, **options):
        if mode in ("r", "rb"):
            return real(path, mode, *args, **options)
        raise PermissionError("read-only")

    with monkeypatch.context() as patch:  # root may write anywhere
        patch.setattr(pathlib.Path, "open", refused)
        patch.setattr(shutil, "rmtree", lambda path: refused(path, "w"))
        assert [*make(CAPTIONS, tiny, directory)._heads] == captions


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}'])
def test_a_broken_meta_is_named(tiny, tmp_path, content):
    make(CAPTIONS[:1], tiny, tmp_path)
    path = tmp_path / tiny.fingerprint / "meta.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path} must "):
        make(CAPTIONS, tiny, tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="has shards but no meta.json"):
        make(CAPTIONS, tiny, tmp_path)


def test_a_damaged_index_is_named(tiny, tmp_path):
    make(CAPTIONS, tiny, tmp_path)
    shard = tmp_path / tiny.fingerprint / "shard-00000"
    (shard.parent / "shard-00000.bak").mkdir()  # not ours
    index = (shard / "index.bin").read_bytes()
    for content in (b"", index[:100]):
        (shard / "index.bin").write_bytes(content)
        with pytest.raises(ValueError, match=f"{shard} is damaged.*delete it"):
            EmbeddingCache.open(tmp_path, tiny.fingerprint)


def test_a_damaged_shard_is_named(tiny, tmp_path):
    make(CAPTIONS, tiny, tmp_path, shard_size=4)
    shard = tmp_path / tiny.fingerprint / "shard-00001"
    (shard / "tokens.bin").write_bytes((shard / "tokens.bin").read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{shard}/tokens.bin must have .* bytes.*delete {shard}"):
        EmbeddingCache.open(tmp_path, tiny.fingerprint)
    shutil.rmtree(shard)
    assert len(EmbeddingCache.open(tmp_path, tiny.fingerprint)) == 4


def test_two_builders_do_not_overwrite_each_other(tiny, tmp_path, monkeypatch):
    make(CAPTIONS[:2], tiny, tmp_path)
    # The second has listed the directory before the first published its shard.
    monkeypatch.setattr(cache_lib, "_shards", lambda root: [])
    make(CAPTIONS[2:4], tiny, tmp_path)
    monkeypatch.undo()
    cache = EmbeddingCache.open(tmp_path, tiny.fingerprint)
    assert [caption in cache for caption in CAPTIONS[:5]] == [True] * 4 + [False]


def test_missing_caption_names_it_and_the_fix(tiny, tmp_path):
    cache = make(CAPTIONS, tiny, tmp_path)
    assert "a zebra" not in cache
    with pytest.raises(ValueError, match="'a zebra' is not in .*scripts/embed_text.py"):
        cache["a zebra"]
    # A new cache holds nothing, and says the same.
    empty = make([], tiny, tmp_path / "empty")
    assert len(empty) == 0
    with pytest.raises(ValueError, match="'a zebra' is not in"):
        empty["a zebra"]


def test_another_encoder_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="no cache at all"):
        EmbeddingCache.open(tmp_path, tiny.fingerprint)
    make(CAPTIONS[:1], tiny, tmp_path)
    with pytest.raises(ValueError, match=f"fingerprint abc; got only those of {tiny.fingerprint}"):
        EmbeddingCache.open(tmp_path, "abc")
    path = tmp_path / tiny.fingerprint / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "abc"}))
    with pytest.raises(ValueError, match="must be of format 2 and fingerprint"):
        EmbeddingCache.open(tmp_path, tiny.fingerprint)


def test_encoders_share_a_directory(tiny, tmp_path):
    short = TextEncoder.from_pretrained(GOLDENS / "tiny_bert", max_length=6)
    long = CAPTIONS[-1]
    make([long], tiny, tmp_path)
    with pytest.warns(UserWarning, match="cut to the limit of 6"):
        cut = make([long], short, tmp_path)
    assert len(cut[long]) == 6
    assert len(EmbeddingCache.open(tmp_path, tiny.fingerprint)[long]) == 14


def test_dtype_stays_what_it_was(tiny, tmp_path):
    make(CAPTIONS[:1], tiny, tmp_path, dtype="float32")
    with pytest.raises(ValueError, match="stored as float32, as it is; got dtype 'float16'"):
        make(CAPTIONS, tiny, tmp_path, dtype="float16")
    assert make(CAPTIONS, tiny, tmp_path).dtype == "float32"
    with pytest.raises(ValueError, match="dtype must be one of"):
        make(CAPTIONS, tiny, tmp_path, dtype="int4")


def test_values_that_do_not_fit_are_refused(tiny, tmp_path):
    class Huge(Counting):
        def encode_ragged(self, captions, batch_size):
            for i, _ in enumerate(captions):
                yield i, np.full((3, 32), 1e6, np.float32)

    with pytest.raises(ValueError, match="finite in it.*1000000.*'bfloat16'"):
        make(CAPTIONS[:1], Huge(tiny), tmp_path)
    assert not list(tmp_path.glob("*/tmp-*")) and not list(tmp_path.glob("*/shard-*"))


def test_captions_must_be_str(tiny, tmp_path):
    with pytest.raises(TypeError, match="got bytes at index 1"):
        make(["a", b"b"], tiny, tmp_path)
    with pytest.raises(TypeError, match="must be an iterable of str; got 'a cat'"):
        make("a cat", tiny, tmp_path)
    with pytest.raises(ValueError, match="shard_size must be at least 1; got 0"):
        make(["a"], tiny, tmp_path, shard_size=0)


def test_pickles_small_and_reads_from_many_threads(tiny, tmp_path):
    cache = make(CAPTIONS, tiny, tmp_path, shard_size=4)
    pickled = pickle.dumps(cache)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        reads = pool.map(copy.__getitem__, CAPTIONS * 50)
        for caption, read in zip(CAPTIONS * 50, reads, strict=True):
            np.testing.assert_array_equal(read, cache[caption])


def test_digests_that_begin_alike_are_told_apart(tiny, tmp_path, monkeypatch):
    real = cache_lib._digest
    monkeypatch.setattr(cache_lib, "_digest", lambda caption: b"\0" * 8 + real(caption)[8:])
    cache = make(CAPTIONS, tiny, tmp_path, shard_size=4)
    lengths = {caption: len(tiny.token_ids([caption])[0]) for caption in CAPTIONS}
    assert {caption: len(cache[caption]) for caption in CAPTIONS} == lengths
    assert "a zebra" not in cache


def test_captions_of_unknown_tokens_are_counted(tiny, tmp_path, capsys):
    captions = ["\U0001f43b", "a red cat", "\u5317\u4eac", "\U0001f431"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(captions, tiny, tmp_path, shard_size=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith(
        "3 of 4 captions consist mostly of text that the tokenizer of"
    )
    assert all(repr(captions[i]) in lines[0] for i in (0, 2, 3))
    make(captions[:2], tiny, tmp_path)  # nothing new
    assert capsys.readouterr().out == ""
