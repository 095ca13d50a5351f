"""The embedding cache as a whole: what is read is what the encoder gave, and each caption is embedded once."""

import concurrent.futures
import pickle

import numpy as np
import pytest

from imagen_jax.text import cache_files
from imagen_jax.text.cache import EmbeddingCache, build
from imagen_jax.text.encoder import TextEncoder
from tests.conftest import GOLDENS
from tests.text.conftest import CAPTIONS, Counting, Letters, make


@pytest.mark.parametrize(("dtype", "relative"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float32", 0)])
def test_gives_what_the_encoder_gives(tiny, tmp_path, dtype, relative):
    cache = make(CAPTIONS, tiny, tmp_path, dtype=dtype)
    assert len(cache) == len(CAPTIONS) and cache.width == 32 and cache.dtype == dtype
    for caption in CAPTIONS:
        text = tiny.encode([caption])
        expected = np.asarray(text.embeddings[0])[np.asarray(text.mask[0])]
        assert cache[caption].dtype == np.float32
        np.testing.assert_allclose(cache[caption], expected, rtol=relative, atol=1e-5)


def test_int8_has_a_scale_per_token(tiny, tmp_path):
    cache = make(CAPTIONS, tiny, tmp_path, dtype="int8")
    for caption in CAPTIONS:
        text = tiny.encode([caption])
        expected = np.asarray(text.embeddings[0])[np.asarray(text.mask[0])]
        largest = np.abs(expected).max(axis=1, keepdims=True)
        assert (np.abs(cache[caption] - expected) <= largest / 254 * 1.0001 + 1e-5).all()
        np.testing.assert_allclose(np.abs(cache[caption]).max(axis=1, keepdims=True), largest, rtol=1e-5)

    class Zeros(Counting):
        def encode_ragged(self, captions, batch_size):
            yield 0, np.zeros((2, 32), np.float32)

    zeros = make(["nothing"], Zeros(tiny), tmp_path / "zeros", dtype="int8")
    np.testing.assert_array_equal(zeros["nothing"], np.zeros((2, 32)))


def test_dirty_captions_are_known_by_what_they_say(tmp_path):
    encoder = Counting(TextEncoder.from_pretrained(GOLDENS / "tiny_bert", clean_captions=True))
    dirty = ["a&nbsp;red cat", "a red  cat www.cats.com", "a red cat"]
    cache = make(dirty, encoder, tmp_path)
    assert encoder.embedded == ["a red cat"] and len(cache) == 1
    for caption in dirty:
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(cache))[caption], cache["a red cat"])


def test_missing_caption_names_it_and_the_fix(tiny, tmp_path):
    cache = make(CAPTIONS, tiny, tmp_path)
    assert "a zebra" not in cache
    with pytest.raises(ValueError, match="must hold every caption; got none for 'a zebra': .*imagen-jax embed"):
        cache["a zebra"]
    # A new cache holds nothing, and says the same.
    empty = make([], tiny, tmp_path / "empty")
    assert len(empty) == 0
    with pytest.raises(ValueError, match="got none for 'a zebra'"):
        empty["a zebra"]


def test_another_encoder_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="no cache at all"):
        EmbeddingCache.open(tmp_path, tiny.fingerprint)
    make(CAPTIONS[:1], tiny, tmp_path)
    with pytest.raises(ValueError, match=f"fingerprint abc; got only those of {tiny.fingerprint}"):
        EmbeddingCache.open(tmp_path, "abc")


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


def test_captions_must_be_str(tiny, tmp_path):
    with pytest.raises(TypeError, match="got bytes at index 1"):
        make(["a", b"b"], tiny, tmp_path)
    with pytest.raises(TypeError, match="must be an iterable of str; got 'a cat'"):
        make("a cat", tiny, tmp_path)


def test_pickles_small_and_reads_from_many_threads(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_files, "_MAX_CAPTIONS", 4)
    cache = make(CAPTIONS, tiny, tmp_path)
    pickled = pickle.dumps(cache)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        reads = pool.map(copy.__getitem__, CAPTIONS * 50)
        for caption, read in zip(CAPTIONS * 50, reads, strict=True):
            np.testing.assert_array_equal(read, cache[caption])


def test_an_encoder_of_ones_own(tmp_path):
    cache = build(CAPTIONS, Letters(), tmp_path, batch_size=3)
    assert len(cache) == cache.num_new == len(CAPTIONS)
    np.testing.assert_array_equal(cache["a red dog"][:, 0], [*map(ord, "a red dog")])
    with pytest.raises(ValueError, match="encoder must be a TextEncoder, or have name, width"):
        build(CAPTIONS, "letters", tmp_path)
