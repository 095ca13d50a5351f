"""The tiny BERT: an encoder of it, and a copy of its directory that a test may change."""

import io
import json
import pickle
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.structs import TextCond
from imagen_jax.text import cache_files
from imagen_jax.text.cache import build
from imagen_jax.text.cache_rows import key_of
from imagen_jax.text.encoder import TextEncoder
from tests.conftest import GOLDENS


@pytest.fixture(scope="module")
def tiny():
    return TextEncoder.from_pretrained(GOLDENS / "tiny_bert")


@pytest.fixture
def directory(tmp_path):
    """A copy of the tiny model that a test may damage."""
    return shutil.copytree(GOLDENS / "tiny_bert", tmp_path / "model")


def rewrite(directory, change):
    path = directory / "model.safetensors"
    tensors = load_file(path)
    save_file(change(tensors) or tensors, path)


@pytest.fixture
def model(tmp_path):
    """Copies a golden model; `change` is applied to its tensors, `config` to its config.json."""

    def copy(name, change=lambda tensors: None, **config):
        directory = shutil.copytree(GOLDENS / name, tmp_path / "model", dirs_exist_ok=True)
        tensors = load_file(directory / "model.safetensors")
        tensors = change(tensors) or tensors
        save_file(tensors, directory / "model.safetensors")
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return directory

    return copy


TWELVE = [f"caption {i} of a {color} cat" for i in range(6) for color in ("red", "blue")]


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


def made(directory, encoder=None, captions=TWELVE, **options):
    return build(captions, encoder or Fake(), directory, **options)


@pytest.fixture(scope="module", params=["float16", "int8"])
def whole_cache(request, tmp_path_factory):
    """A cache of three files, of five, five and two captions, and all that is in it."""
    directory = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_files, "_MAX_CAPTIONS", 5)
        cache = made(directory, dtype=request.param)
    return directory, {caption: cache[caption] for caption in TWELVE}


@pytest.fixture
def cache_copy(whole_cache, tmp_path):
    """A copy of it, and its files in the order of their captions."""
    directory = shutil.copytree(whole_cache[0], tmp_path / "cache")
    records = cache_files.RecordFiles(directory / Fake.fingerprint)
    first = cache_files.Index(directory / Fake.fingerprint).locate([key_of(TWELVE[i]) for i in (0, 5, 10)])
    return directory, [records.path(int(location) >> 32) for location in first]


SHORT = [f"a {color} {animal}" for color in ("red", "blue") for animal in ("cat", "dog")]
CAPTIONS = SHORT + [caption + " left" * 9 for caption in SHORT]


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


def make(captions, encoder, directory, **options):
    return build(captions, encoder, directory, batch_size=2, **options)


def state_pickle(pieces):
    """The pickle of a dictionary of tensors, written by hand: (name, storage, offset, shape, strides)."""
    out = io.BytesIO()
    pickler = pickle._Pickler(out, 2)
    out.write(b"\x80\x02}(")
    for name, (kind, cls, key, device, size), offset, shape, strides in pieces:
        save = lambda value: pickle._Pickler.save(pickler, value)
        save(name)
        out.write(b"ctorch._utils\n_rebuild_tensor_v2\n((")
        save(kind)
        out.write(f"ctorch\n{cls}\n".encode())
        for value in (key, device, size):
            save(value)
        out.write(b"tQ")
        for value in (offset, shape, strides, False):
            save(value)
        out.write(b"ccollections\nOrderedDict\n)RtR")
    out.write(b"u.")
    return out.getvalue()


SPIECE = json.loads((GOLDENS / "tokenizers.json").read_text())


def sentencepiece_directory(layout, directory):
    """A directory with spiece.model, and the settings of a layout if it has some."""
    found = SPIECE["layouts"][layout]
    directory.mkdir(exist_ok=True)
    shutil.copy(GOLDENS / "sentencepiece" / f"{found['model']}.model", directory / "spiece.model")
    if found["config"] is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps(found["config"]))
    return found
