"""Colour profiles: whatever a picture says of its colours, they are those of sRGB afterwards."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from imagen_jax.data import profiles, transforms
from imagen_jax.prepare import pictures
from tests.pictures import encoded, over_white, png, with_chunks

RNG = np.random.default_rng(5)
X = RNG.integers(0, 256, (6, 7, 3), np.uint8)
GREY = X[..., :1]
PNG = encoded(X)


def swapped():
    """A profile that swaps red and green."""
    made = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for one, other in ((b"rXYZ", b"gXYZ"), (b"rTRC", b"gTRC")):
        a, b = made.index(one), made.index(other)
        made[a : a + 4], made[b : b + 4] = other, one
    return bytes(made)


def cmyk_profile():
    """A profile of CMYK whose table (lut8Type) makes white of no ink and black of any full one."""
    corners = np.indices((2, 2, 2, 2)).reshape(4, -1).T
    table = b"".join(bytes((0 if corner.any() else 255, 128, 128)) for corner in corners)
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + ramp * 4 + table + ramp * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags = struct.pack(">I4sII4sII", 2, b"A2B0", 156, len(lut), b"wtpt", 156 + len(lut), len(white))
    header = struct.pack(">I4sI4s4s4s12s4s28x3i48x", 156 + len(lut) + len(white), b"", 0x02400000, b"prtr", b"CMYK",
                         b"Lab ", b"", b"acsp", 63190, 65536, 54061)  # fmt: skip
    return header + tags + lut + white


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
SWAPPED = swapped()
P3 = profiles.from_code_points(12, 13)
ADOBE = profiles._profile((0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), (2.19922,), False)
CMYK = cmyk_profile()
LINEAR_GREY = profiles.from_gamma(1.0, None, is_grey=True)


def srgb_curve(linear):
    return np.where(
        linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055
    )


def linear(values):
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def p3_to_srgb(x):
    matrix = [[1.22494, -0.22494, 0], [-0.042057, 1.042057, 0], [-0.019638, -0.078636, 1.098274]]
    return np.clip(255 * srgb_curve(np.clip(linear(x / 255) @ np.transpose(matrix), 0, 1)), 0, 255)


def adobe_to_srgb(x):
    matrix = [[1.39836, -0.39836, 0], [0, 1, 0], [0, -0.042938, 1.042938]]
    return np.clip(255 * srgb_curve(np.clip((x / 255) ** 2.19922 @ np.transpose(matrix), 0, 1)), 0, 255)


BIG = np.repeat(np.repeat(RNG.integers(0, 256, (4, 4, 3), np.uint8), 16, 0), 16, 1)  # even areas, for JPEG
ALPHA = RNG.integers(0, 256, (6, 7), np.uint8)
RGBA = np.dstack([X, ALPHA])
PALETTE = Image.fromarray((GREY[..., 0] % 3).astype(np.uint8)).convert("P")
PALETTE.putdata((GREY[..., 0] % 3).ravel().tolist())
PALETTE.putpalette(X[0, :3].tobytes())
SHOWN = X[0, GREY[..., 0] % 3]
LEVEL = np.rint(255 * srgb_curve(GREY / 255)).repeat(3, 2)
INK = Image.new("CMYK", (32, 16), (0, 0, 0, 0))
INK.paste((255, 0, 0, 0), (16, 0, 32, 16))
PRINTED = np.array([[[255] * 3] * 16 + [[0] * 3] * 16] * 16)  # without the profile it would be cyan
PROFILES = {
    # name -> (picture, colours, largest difference)
    "sRGB, PNG": (encoded(X, icc_profile=SRGB), X, 0),
    "sRGB, TIFF": (encoded(X, "TIFF", icc_profile=SRGB), X, 0),
    "swapped, PNG": (encoded(X, icc_profile=SWAPPED), X[..., [1, 0, 2]], 1),
    "swapped, TIFF": (encoded(X, "TIFF", icc_profile=SWAPPED), X[..., [1, 0, 2]], 1),
    "swapped, TIFF of LZW": (
        encoded(X, "TIFF", icc_profile=SWAPPED, compression="tiff_lzw"),
        X[..., [1, 0, 2]],
        1,
    ),
    "swapped, JPEG": (
        encoded(BIG, "JPEG", quality=100, subsampling=0, icc_profile=SWAPPED),
        BIG[..., [1, 0, 2]],
        5,
    ),
    "swapped, WebP": (encoded(X, "WEBP", lossless=True, icc_profile=SWAPPED), X[..., [1, 0, 2]], 1),
    "swapped, AVIF": (
        encoded(BIG, "AVIF", quality=100, subsampling="4:4:4", icc_profile=SWAPPED),
        BIG[..., [1, 0, 2]],
        16,
    ),
    "swapped, palette": (encoded(PALETTE, icc_profile=SWAPPED), SHOWN[..., [1, 0, 2]], 1),
    "swapped, transparent": (encoded(RGBA, icc_profile=SWAPPED), over_white(X[..., [1, 0, 2]], ALPHA), 2),
    "swapped, a transparent colour": (
        encoded(X, icc_profile=SWAPPED, transparency=tuple(X[0, 0].tolist())),
        over_white(X[..., [1, 0, 2]], np.where((X == X[0, 0]).all(-1), 0, 255)),
        2,
    ),
    "swapped, 16 bits": (
        png(X.astype(int) * 257, 16, 2, (b"iCCP", b"a\0\0" + zlib.compress(SWAPPED))),
        X[..., [1, 0, 2]],
        1,
    ),
    "Display P3": (encoded(X, icc_profile=P3), p3_to_srgb(X), 2),
    "Adobe RGB": (encoded(X, icc_profile=ADOBE), adobe_to_srgb(X), 3),
    "Adobe RGB, JPEG": (
        encoded(BIG, "JPEG", quality=100, subsampling=0, icc_profile=ADOBE),
        adobe_to_srgb(BIG),
        8,
    ),
    "linear grey": (encoded(GREY[..., 0], icc_profile=LINEAR_GREY), LEVEL, 1),
    "linear grey of 16 bits": (
        encoded(GREY[..., 0].astype(np.uint16) * 257, icc_profile=LINEAR_GREY),
        LEVEL,
        1,
    ),
    "linear grey with alpha": (
        encoded(np.dstack([GREY[..., 0], ALPHA]), icc_profile=LINEAR_GREY),
        over_white(LEVEL, ALPHA),
        2,
    ),
    "RGB for a grey picture": (encoded(GREY[..., 0], icc_profile=SWAPPED), GREY.repeat(3, 2), 0),
    "grey for an RGB picture": (encoded(X, icc_profile=LINEAR_GREY), X, 0),
    "broken": (encoded(X, icc_profile=b"hello" * 100), X, 0),
    "cut off": (encoded(X, icc_profile=SWAPPED[:200]), X, 0),
    "empty": (encoded(X, "TIFF", icc_profile=b"\0"), X, 0),
    "damaged": (encoded(X, icc_profile=SWAPPED[:128] + bytes(len(SWAPPED) - 128)), X, 0),
    "cICP, Display P3": (with_chunks(PNG, (b"cICP", bytes((12, 13, 0, 1)))), p3_to_srgb(X), 2),
    "cICP before a profile": (
        with_chunks(encoded(X, icc_profile=SWAPPED), (b"cICP", bytes((1, 13, 0, 1)))),
        X,
        0,
    ),
    "cICP, unknown": (with_chunks(PNG, (b"cICP", bytes((200, 13, 0, 1)))), X, 0),
    "gAMA of sRGB": (with_chunks(PNG, (b"gAMA", struct.pack(">I", 45455))), X, 0),
    "gAMA of 1": (with_chunks(PNG, (b"gAMA", struct.pack(">I", 100000))), 255 * srgb_curve(X / 255), 1),
    "gAMA of 1, grey": (with_chunks(encoded(GREY[..., 0]), (b"gAMA", struct.pack(">I", 100000))), LEVEL, 1),
    "gAMA of 1 beside sRGB": (with_chunks(PNG, (b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))), X, 0),
    "gAMA of 0": (with_chunks(PNG, (b"gAMA", struct.pack(">I", 0))), X, 0),
    "gAMA and cHRM of P3": (
        with_chunks(
            PNG,
            (b"gAMA", struct.pack(">I", 45455)),
            (b"cHRM", struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)),
        ),
        p3_to_srgb(X),
        2,
    ),
    "gAMA and a broken cHRM": (
        with_chunks(PNG, (b"gAMA", struct.pack(">I", 50000)), (b"cHRM", bytes(32))),
        X,
        0,
    ),
    "CMYK, TIFF": (encoded(INK, "TIFF", icc_profile=CMYK), PRINTED, 2),
    "CMYK, JPEG": (encoded(INK, "JPEG", quality=100, subsampling=0, icc_profile=CMYK), PRINTED, 6),
    "CMYK without a profile": (encoded(INK, "TIFF"), [[[255] * 3] * 16 + [[0, 255, 255]] * 16] * 16, 0),
    "RGB for a CMYK picture": (
        encoded(INK, "TIFF", icc_profile=SWAPPED),
        [[[255] * 3] * 16 + [[0, 255, 255]] * 16] * 16,
        0,
    ),
    "LAB": (
        encoded(Image.frombytes("LAB", (2, 1), bytes((255, 0, 0, 137, 0, 0))), "TIFF"),
        np.array([[[255] * 3, [128] * 3]]),
        2,
    ),
}


@pytest.mark.parametrize("kind", PROFILES)
def test_colours_are_converted_to_srgb(kind):
    data, expected, difference = PROFILES[kind]
    given = transforms.decode(data)
    np.testing.assert_allclose(given, expected, atol=difference + 0.51 * (difference > 0))
    stored = pictures.normalized(data, 256)
    np.testing.assert_array_equal(transforms.decode(stored), given)
    if stored == data:
        assert difference == 0  # whose values are sRGB as they are
    if data.startswith(b"\x89PNG") and difference == 0 and data[24] == 8 and data[25] == 2:
        assert stored == data
