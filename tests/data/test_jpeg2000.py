"""Headers of JPEG 2000: sizes and memory by the code stream, with or without boxes around it."""

import struct

import numpy as np
import pytest

from imagen_jax.data import containers, jpeg2000
from imagen_jax.data.profiles import BrokenError
from tests.pictures import encoded

X = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
JP2 = encoded(X, "JPEG2000", tile_size=(32, 32))


@pytest.mark.parametrize("data", [JP2, JP2[JP2.index(b"jp2c") + 4 :]], ids=["boxes", "code stream alone"])
def test_size_and_memory_by_tile(data):
    found = jpeg2000.contents(data)
    assert found.size == (64, 48) and found.profile is None and found.data == data
    assert found.scratch == 4 * jpeg2000.contents(encoded(X, "JPEG2000")).scratch


def test_a_profile_in_its_box():
    place = JP2.index(b"colr")
    (length,) = struct.unpack(">I", JP2[place - 4 : place])
    profile = bytes(range(128))
    box = struct.pack(">I", 11 + len(profile)) + b"colr\x02\0\0" + profile
    data = JP2[: place - 4] + box + JP2[place - 4 + length :]
    assert jpeg2000.contents(data).profile == profile


def test_what_is_broken_or_takes_too_much():
    with pytest.raises(BrokenError, match="without a code stream"):
        jpeg2000.contents(JP2[: JP2.index(b"jp2c") - 4])
    size = JP2.index(b"\xff\x51") + 6
    with pytest.raises(BrokenError, match="an empty picture"):
        jpeg2000.contents(JP2[:size] + bytes(8) + JP2[size + 8 :])
    with pytest.raises(containers.TooLargeError, match="[0-9]+ tiles, more than"):
        jpeg2000.contents(JP2[:size] + struct.pack(">II", 2**20, 2**20) + JP2[size + 8 :])
