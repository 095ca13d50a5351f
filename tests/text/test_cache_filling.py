"""Filling a cache: each caption is embedded once, whoever else fills it and whatever ends it."""

import concurrent.futures
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

from imagen_jax import progress
from imagen_jax.text import cache_filling
from imagen_jax.text.cache import EmbeddingCache
from tests.conftest import GOLDENS
from tests.text.conftest import CAPTIONS, Counting, make


@pytest.fixture
def no_progress(monkeypatch):
    """No line says how long it took, however slow the machine is."""
    monkeypatch.setattr(progress.Progress, "close", lambda self: None)
    monkeypatch.setattr(progress.Progress, "_log_rate", lambda self, now: None)


@pytest.mark.slow
def test_processes_share_the_captions(tiny, tmp_path):
    counting = [Counting(tiny) for _ in range(3)]
    for i, encoder in enumerate(counting):
        cache = make(CAPTIONS * 2, encoder, tmp_path, share=(i, 3))
    assert sorted(sum((encoder.embedded for encoder in counting), [])) == sorted(CAPTIONS)
    assert max(len(encoder.embedded) for encoder in counting) < len(CAPTIONS)
    assert all(caption in cache for caption in CAPTIONS)
    with pytest.raises(ValueError, match=r"share must be \(i, n\) with 0 <= i < n; got \(3, 3\)"):
        make(CAPTIONS, tiny, tmp_path, share=(3, 3))


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


@pytest.mark.slow
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


def test_values_that_do_not_fit_are_refused(tiny, tmp_path):
    class Huge(Counting):
        def encode_ragged(self, captions, batch_size):
            for i, _ in enumerate(captions):
                yield i, np.full((3, 32), 1e6, np.float32)

    with pytest.raises(ValueError, match="finite in it.*1000000.*'bfloat16'"):
        make(CAPTIONS[:1], Huge(tiny), tmp_path)
    assert not list(tmp_path.glob("*/*.unfinished")) and not list(tmp_path.glob("*/*.array_record"))


def test_captions_of_unknown_tokens_are_counted(tiny, tmp_path, capsys, monkeypatch, no_progress):
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


def test_what_the_cache_lacks_is_named(tiny, tmp_path, capsys, no_progress):
    make(CAPTIONS[:2], tiny, tmp_path)
    assert capsys.readouterr().out == ""
    make(CAPTIONS, tiny, tmp_path)
    some = ", ".join(map(repr, CAPTIONS[2:5]))
    assert capsys.readouterr().out == f"{tmp_path} lacks captions, such as {some}: they are embedded now.\n"
