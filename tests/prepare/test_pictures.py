"""What is stored of a picture: its own bytes only if they are one upright RGB picture of 8 bits."""

import io
import threading
import warnings

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import opening, transforms
from imagen_jax.prepare import pictures
from tests.pictures import encoded, png
from tests.prepare.conftest import huge


def test_only_one_picture_of_8_bits_keeps_its_bytes():
    x = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    film = encoded(x, save_all=True, append_images=[Image.fromarray(x[::-1].copy())])
    several = encoded(x, "MPO", save_all=True, append_images=[Image.fromarray(x[::-1].copy())])
    for stays in (encoded(x), encoded(x, "JPEG")):
        assert pictures.normalized(stays, 64) == stays
    for data in (film, png(x.astype(np.uint16) * 257, 16, 2), several):
        stored = pictures.normalized(data, 64)
        with Image.open(io.BytesIO(stored)) as image:
            assert (image.format, image.mode, image.n_frames, stored[24]) == ("PNG", "RGB", 1, 8)
        np.testing.assert_array_equal(transforms.decode(stored), transforms.decode(data))
    for data in (film, png(x.astype(np.uint16) * 257, 16, 2)):
        np.testing.assert_array_equal(transforms.decode(data), x)


def test_reasons_are_short_and_postscript_is_not_read():
    for data in (b"hello", encoded(np.zeros((9, 9, 3), np.uint8), "EPS")):
        with pytest.raises(pictures.Unusable) as caught:
            pictures.normalized(data, 64)
        assert (caught.value.reason, caught.value.detail) == (
            "undecodable",
            "not a picture, or of an unknown format",
        )
    half = encoded(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))[:900]
    with pytest.raises(pictures.Unusable, match="^undecodable: (?!.*picture).*truncated"):
        pictures.normalized(half, 64)


def test_threads_leave_the_limit_and_the_warnings_of_the_process_as_they_were():
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))
    data = encoded(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8))
    threads = [threading.Thread(target=pictures.normalized, args=(data, size)) for size in range(20, 60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_a_picture_of_too_many_bytes_is_left_out_unopened(monkeypatch):
    data = encoded(np.zeros((9, 9, 3), np.uint8))
    monkeypatch.setattr(opening, "MAX_BYTES", len(data))
    assert pictures.normalized(data, 64) == data
    monkeypatch.setattr(opening, "MAX_BYTES", len(data) - 1)
    with pytest.raises(pictures.Unusable, match=f"^too large: {len(data)} bytes, more than {len(data) - 1}$"):
        pictures.normalized(data, 64)
    with pytest.raises(opening.UndecodableError, match="bytes, more than"):
        transforms.decode(data)


def test_pixels_are_counted_before_they_are_decoded(monkeypatch):
    def never(*arguments):
        raise AssertionError("decoded")

    monkeypatch.setattr(pictures.transforms, "decode", never)
    with pytest.raises(pictures.Unusable, match="too large: 40000x40000 pixels"):
        pictures.normalized(huge(), 64)
