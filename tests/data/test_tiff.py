"""TIFFs are reduced to their first directory and to what decoding needs of it."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from imagen_jax.data import containers, tiff
from tests.pictures import encoded

X = np.random.default_rng(0).integers(0, 256, (32, 64), np.uint8)


def test_only_the_first_directory_and_what_decoding_needs_stay():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    film = {"save_all": True, "append_images": [Image.fromarray(255 - X)]}
    data = encoded(X, "TIFF", **film, icc_profile=profile, description="a cat")
    found = tiff.contents(data)
    assert found.profile == profile
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(found.data)) as after:
        assert (before.n_frames, after.n_frames) == (2, 1)
        assert 270 in before.tag_v2 and 270 not in after.tag_v2  # ImageDescription
        np.testing.assert_array_equal(np.asarray(after), X)


def test_memory_is_that_of_one_strip():
    whole = tiff.contents(encoded(X, "TIFF")).scratch
    assert whole >= 32 * 64
    assert tiff.contents(encoded(X, "TIFF", tiffinfo={278: 8})).scratch == whole / 4  # RowsPerStrip


def test_too_many_strips_are_refused(monkeypatch):
    monkeypatch.setattr(tiff, "MAX_STRIPS", 3)
    with pytest.raises(containers.TooLargeError, match="4 strips or tiles, more than 3"):
        tiff.contents(encoded(X, "TIFF", tiffinfo={278: 8}))
