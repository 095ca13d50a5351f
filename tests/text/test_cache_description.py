"""The description of a cache: what is broken in it, or does not belong to the embeddings, is named."""

import json
import pathlib

import pytest

from imagen_jax.text import cache_description
from imagen_jax.text.cache import EmbeddingCache
from tests.text.conftest import Fake, made


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}'])
def test_a_broken_description_is_named(cache_copy, content):
    directory, _ = cache_copy
    path = directory / Fake.fingerprint / cache_description.NAME
    path.write_text(content)
    with pytest.raises(ValueError, match=f"{path} must "):
        made(directory)
    path.unlink()
    with pytest.raises(ValueError, match=f"{path.parent} must have the file {path.name}"):
        made(directory)


@pytest.mark.parametrize(
    "change",
    [
        {"width": 9}, {"width": 0}, {"width": "8"}, {"width": True}, {"width": 10**18}, {"width": None}, {"dtype": []},
        {"dtype": "float64"}, {"dtype": None}, {"clean_captions": 0}, {"clean_captions": "no"},
        {"clean_captions": True},
        {"encoder": 5}, {"encoder": "another"}, {"format": "3"}, {"fingerprint": None}, {"checksum": 5}, {"more": 1},
    ],
)  # fmt: skip
def test_a_description_of_other_values_is_named(cache_copy, change):
    directory, _ = cache_copy
    path = directory / Fake.fingerprint / cache_description.NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for use in (lambda: made(directory), lambda: EmbeddingCache.open(directory, Fake.fingerprint)):
        with pytest.raises(ValueError, match=f"{path} must ") as error:
            use()
        assert "\n" not in str(error.value)


def test_the_width_of_the_encoder_must_be_that_of_the_cache(cache_copy):
    directory, _ = cache_copy
    encoder = Fake()
    encoder.width = 9
    with pytest.raises(ValueError, match=f"{cache_description.NAME} must .*its width is 8, the encoder's 9"):
        made(pathlib.Path(directory), encoder)


def test_a_cache_of_an_earlier_version_is_refused_with_what_to_do(tmp_path):
    (tmp_path / Fake.fingerprint / "shard-00000").mkdir(parents=True)
    with pytest.raises(ValueError, match="must have the file embeddings.json, .* delete that directory and build it"):
        made(tmp_path)
