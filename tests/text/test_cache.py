"""The embedding cache as a whole: what is read is what the encoder gave, and each caption is embedded once."""

import concurrent.futures
import errno
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

from imagen_jax.data import shards, sources, transforms
from imagen_jax.prepare.records import write_records
from imagen_jax.structs import TextCond
from imagen_jax.text import cache_files, cache_filling
from imagen_jax.text.cache import EmbeddingCache, build
from imagen_jax.text.encoder import TextEncoder

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
SHORT = [f"a {color} {animal}" for color in ("red", "blue") for animal in ("cat", "dog")]
CAPTIONS = SHORT + [caption + " left" * 9 for caption in SHORT]
PICTURE = transforms.encode_png(np.zeros((8, 8, 3), np.uint8))


class Letters:
    """An encoder of nothing but what an encoder must have: a token per letter, whose numbers are its code."""

    name, width, fingerprint = "letters", 4, "letters"

    def encode(self, captions):
        length = max(map(len, captions))
        codes = np.array([[ord(letter) for letter in caption.ljust(length, "\0")] for caption in captions])
        return TextCond(np.repeat(codes[:, :, None], 4, 2).astype(np.float32), codes > 0)


class Counting:
    """A TextEncoder that counts what it embeds, and is interrupted after `dies_after` captions."""

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
    return build(captions, encoder, directory, batch_size=2, **options)


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


def test_embeds_each_caption_once(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_filling, "CHUNK", 2)
    counting = Counting(tiny)
    make(iter(CAPTIONS[:5] * 3), counting, tmp_path)
    cache = make(CAPTIONS + CAPTIONS[::-1], counting, tmp_path)
    assert sorted(counting.embedded) == sorted(CAPTIONS)
    assert len(cache) == len(CAPTIONS)


def test_an_interrupted_build_continues_behind_what_it_has_embedded(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_filling, "CHUNK", 2)
    with pytest.raises(KeyboardInterrupt):
        make(CAPTIONS, Counting(tiny, dies_after=5), tmp_path)
    partial = EmbeddingCache.open(tmp_path, tiny.fingerprint)
    assert len(partial) == 5
    continuing = Counting(tiny)
    cache = make(CAPTIONS, continuing, tmp_path)
    assert sorted(continuing.embedded) == sorted(c for c in CAPTIONS if c not in partial)
    whole = make(CAPTIONS, tiny, tmp_path / "whole")
    for caption in CAPTIONS:
        np.testing.assert_array_equal(cache[caption], whole[caption])


KILLED = """
import os, signal, sys
from imagen_jax.text import cache, cache_files
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

cache_files._MAX_CAPTIONS = 2
encoder = TextEncoder.from_pretrained(sys.argv[1])
cache.build(sys.argv[3:], Dying(encoder), sys.argv[2], batch_size=2)
"""


@pytest.fixture
def killed(tiny, tmp_path):
    """The directory of a cache whose builder was killed after five captions, two files of two, and its last file."""
    command = [sys.executable, "-c", KILLED, str(GOLDENS / "tiny_bert"), str(tmp_path), *CAPTIONS]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    (left,) = (tmp_path / tiny.fingerprint).glob("*.unfinished")
    return tmp_path, left


def test_after_a_hard_kill_only_the_unfinished_file_is_embedded_again(tiny, killed):
    directory, left = killed
    assert len(EmbeddingCache.open(directory, tiny.fingerprint)) == 4
    # A process of another share removes the file as well, unless its writer still lives.
    name = left.name.rpartition("-")[0]
    with cache_filling._exclusive(left.parent, name):
        make([], tiny, directory, share=(0, 2))
        assert left.exists()
    make([], tiny, directory, share=(0, 2))
    assert not left.exists()
    continuing = Counting(tiny)
    cache = make(CAPTIONS, continuing, directory)
    assert len(continuing.embedded) == len(CAPTIONS) - 4 == cache.num_new and len(cache) == len(CAPTIONS)
    whole = make(CAPTIONS, tiny, directory / "whole")
    for caption in CAPTIONS:
        np.testing.assert_allclose(cache[caption], whole[caption], rtol=2**-10, atol=1e-5)


def test_of_two_builders_of_a_share_one_waits(tiny, tmp_path):
    counting = [Counting(tiny), Counting(tiny)]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda encoder: make(CAPTIONS, encoder, tmp_path), counting))
    assert sorted(counting[0].embedded + counting[1].embedded) == sorted(CAPTIONS)


def test_a_complete_cache_needs_no_writing(tiny, data, tmp_path, monkeypatch):
    make(CAPTIONS, tiny, tmp_path)
    (tmp_path / tiny.fingerprint / "share-0-of-2-old.unfinished").touch()
    real = pathlib.Path.open

    def refused(path, mode="r", *args, **options):
        if mode in ("r", "rb"):
            return real(path, mode, *args, **options)
        raise PermissionError(errno.EACCES, "read-only")

    with monkeypatch.context() as patch:  # root may write anywhere
        patch.setattr(pathlib.Path, "open", refused)
        patch.setattr(pathlib.Path, "unlink", lambda path, **_: refused(path, "w"))
        cache = make(CAPTIONS, tiny, tmp_path, sources=[data])
        assert len(cache) == len(CAPTIONS)
        np.testing.assert_array_equal(cache.rows(data)([1])[0], cache[CAPTIONS[1]])
    assert not [*(tmp_path / tiny.fingerprint).glob("rows-*")]


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


def test_missing_caption_names_it_and_the_fix(tiny, tmp_path):
    cache = make(CAPTIONS, tiny, tmp_path)
    assert "a zebra" not in cache
    with pytest.raises(ValueError, match="'a zebra' is not in .*imagen-jax embed"):
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
    assert not list(tmp_path.glob("*/*.unfinished")) and not list(tmp_path.glob("*/*.array_record"))


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


def test_captions_of_unknown_tokens_are_counted(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cache_filling, "CHUNK", 1)
    captions = ["\U0001f43b", "a red cat", "\u5317\u4eac", "\U0001f431"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(captions, tiny, tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and lines[0].startswith(
        "3 of 4 captions consist mostly of text that the tokenizer of"
    )
    assert all(repr(captions[i]) in lines[0] for i in (0, 2, 3))
    make(captions[:2], tiny, tmp_path)  # nothing new
    assert capsys.readouterr().out == ""


def test_what_the_cache_lacks_is_named(tiny, tmp_path, capsys):
    make(CAPTIONS[:2], tiny, tmp_path)
    assert capsys.readouterr().out == ""
    make(CAPTIONS, tiny, tmp_path)
    some = ", ".join(map(repr, CAPTIONS[2:5]))
    assert capsys.readouterr().out == f"{tmp_path} lacks captions, such as {some}: they are embedded now.\n"


# --- rows of a data set ---------------------------------------------------------------------------


def write_data(directory, captions):
    """Write a data set whose record files have five records each."""
    directory.mkdir()
    writer = shards.SplitWriter(lambda i: directory / shards.file_name("data", "train", i), max_records=5)
    for caption in captions:
        writer.add(shards.encode({"image": PICTURE, "caption": caption}))
    writer.close()
    shards.write_metadata(directory, "data", "Black.", ["image", "caption"], {"train": writer.shards})
    return sources.open_source(directory)


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data", CAPTIONS * 2)


def read_captions(monkeypatch):
    """A list to which the captions are added that are read from now on."""
    read, real = [], sources.numbered_captions

    def numbered(source, numbers, size=1024):
        for part, captions in real(source, numbers, size):
            read.extend(captions)
            yield part, captions

    monkeypatch.setattr(sources, "numbered_captions", numbered)
    return read


def assert_rows(cache, source, captions):
    rows = pickle.loads(pickle.dumps(cache.rows(source)))
    numbers = np.random.default_rng(0).permutation(len(captions)).tolist()
    for number, row in zip(numbers, rows(numbers), strict=True):
        np.testing.assert_array_equal(row, cache[captions[number]])


def test_rows_are_stored_and_captions_not_read_again(tiny, data, tmp_path, monkeypatch):
    encoder = Counting(tiny)
    cache = make(["a prompt"], encoder, tmp_path / "cache", sources=[data])
    assert sorted(encoder.embedded) == sorted(["a prompt", *CAPTIONS])
    read = read_captions(monkeypatch)
    assert_rows(cache, data, CAPTIONS * 2)
    part = sources.open_source(tmp_path / "data", "train[3:13]")
    assert_rows(make([], tiny, tmp_path / "cache", sources=[data, part]), part, (CAPTIONS * 2)[3:13])
    assert not read


def test_rows_of_a_slice_are_completed_by_the_whole(tiny, data, tmp_path, monkeypatch):
    part = sources.open_source(tmp_path / "data", "train[3:7]")
    cache = make([], tiny, tmp_path / "cache", sources=[part])
    assert len(cache) == 4
    with pytest.raises(ValueError, match="the caption 'a red cat' is not in"):
        cache.rows(data)
    read = read_captions(monkeypatch)
    cache = make([], tiny, tmp_path / "cache", sources=[data])
    assert len(read) == len(CAPTIONS) * 2 - 4
    assert_rows(cache, part, CAPTIONS[3:7])
    assert_rows(cache, data, CAPTIONS * 2)
    assert len(read) == len(CAPTIONS) * 2 - 4


def test_rows_of_a_data_set_that_has_changed_are_made_again(tiny, data, tmp_path, monkeypatch):
    make([], tiny, tmp_path / "cache", sources=[data])
    write_data(tmp_path / "other", CAPTIONS[::-1] * 2)
    for path, _, _ in data.files[:2]:
        path.write_bytes((tmp_path / "other" / path.name).read_bytes())
    data = sources.open_source(tmp_path / "data")
    read, encoder = read_captions(monkeypatch), Counting(tiny)
    cache = make([], encoder, tmp_path / "cache", sources=[data])
    assert read == (CAPTIONS[::-1] * 2)[:10] and not encoder.embedded
    assert_rows(cache, data, (CAPTIONS[::-1] * 2)[:10] + (CAPTIONS * 2)[10:])


def test_a_data_set_that_grows_is_read_where_it_is_new(tiny, data, tmp_path, monkeypatch):
    make([], tiny, tmp_path / "cache", sources=[data])
    new = [f"{caption} right" for caption in SHORT]
    write_data(tmp_path / "grown", (CAPTIONS * 2)[:15] + new)
    for path, _, _ in data.files[:3]:
        os.utime(path, (1, 1))
        os.replace(path, tmp_path / "grown" / path.name)
    grown = sources.open_source(tmp_path / "grown")
    make([], tiny, tmp_path / "cache", sources=[grown])  # the times are others
    read, encoder = read_captions(monkeypatch), Counting(tiny)
    last = grown.files[-1][0]
    os.utime(last, (2, 2))
    cache = make([], encoder, tmp_path / "cache", sources=[grown])
    assert read == new and not encoder.embedded
    assert_rows(cache, grown, (CAPTIONS * 2)[:15] + new)


def test_a_record_that_cannot_be_read_has_no_embedding(tiny, data, tmp_path):
    path = data.files[0][0]
    content = bytearray(path.read_bytes())
    content[content.index(b"a blue cat")] ^= 1
    path.write_bytes(content)
    rows = make([], tiny, tmp_path / "cache", sources=[data]).rows(data)
    assert len(rows([0, 1, 3])) == 3
    with pytest.raises(
        ValueError, match="record 2 of .*, split 'train' must have an embedding; its caption could"
    ):
        rows([0, 2])


@pytest.mark.parametrize(
    "damage", [lambda content: b"", lambda content: content[:-20], lambda content: b"x" * 99]
)
def test_damaged_rows_are_made_again(tiny, data, tmp_path, damage):
    make([], tiny, tmp_path / "cache", sources=[data])
    for path in (tmp_path / "cache").glob("*/rows-*"):
        path.write_bytes(damage(path.read_bytes()))
    cache = make([], tiny, tmp_path / "cache", sources=[data])
    assert_rows(cache, data, CAPTIONS * 2)
    with np.load(path) as content:
        assert len(content["locations"]) > 0


def test_rows_of_another_text_feature_are_not_mixed_up(tiny, tmp_path):
    record = {"image": PICTURE, "caption": SHORT[0], "claims": SHORT[1]}
    write_records({"train": [record]}, tmp_path / "data", name="data", description="Black.")
    source = sources.open_source(tmp_path / "data")
    other = sources.open_source(tmp_path / "data", caption_key="claims")
    for each, caption in ((source, SHORT[0]), (other, SHORT[1]), (source, SHORT[0])):
        assert_rows(make([], tiny, tmp_path / "cache", sources=[each]), each, [caption])


def test_an_encoder_of_ones_own(tmp_path):
    cache = build(CAPTIONS, Letters(), tmp_path, batch_size=3)
    assert len(cache) == cache.num_new == len(CAPTIONS)
    np.testing.assert_array_equal(cache["a red dog"][:, 0], [*map(ord, "a red dog")])
    with pytest.raises(ValueError, match="encoder must be a TextEncoder, or have name, width"):
        build(CAPTIONS, "letters", tmp_path)
