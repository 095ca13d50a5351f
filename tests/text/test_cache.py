import concurrent.futures
import json
import pathlib
import pickle

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


def test_what_a_hard_kill_leaves_is_removed(tiny, tmp_path, monkeypatch):
    make(CAPTIONS[:2], tiny, tmp_path)
    root = tmp_path / tiny.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr(cache_lib.os, "getpid", lambda: 2**22 + 1)  # No process has this id.
        (cache_lib._temporary(root)).mkdir()
    alive = cache_lib._temporary(root)
    alive.mkdir()
    make(CAPTIONS, tiny, tmp_path)
    assert list(root.glob("tmp-*")) == [alive]


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
    with pytest.raises(ValueError, match="'a zebra' is not in .*scripts/train.py"):
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
    with pytest.raises(ValueError, match=f"fingerprint abc, got only those of {tiny.fingerprint}"):
        EmbeddingCache.open(tmp_path, "abc")
    path = tmp_path / tiny.fingerprint / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "abc"}))
    with pytest.raises(ValueError, match="must be of format 1 and fingerprint"):
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
    with pytest.raises(ValueError, match="stored as float32, got dtype 'float16'"):
        make(CAPTIONS, tiny, tmp_path, dtype="float16")
    assert make(CAPTIONS, tiny, tmp_path).dtype == "float32"
    with pytest.raises(ValueError, match="dtype must be one of"):
        make(CAPTIONS, tiny, tmp_path, dtype="int8")


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
