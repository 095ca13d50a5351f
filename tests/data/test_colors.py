"""Depths and transparency: values are scaled by the bits that a file says; what has no defined white is left out."""

import struct

import numpy as np
import pytest

from imagen_jax.data import opening, transforms
from imagen_jax.prepare import pictures
from tests.pictures import encoded, over_white, png, with_chunks

RNG = np.random.default_rng(5)
X = RNG.integers(0, 256, (6, 7, 3), np.uint8)
GREY = X[..., :1]
PNG = encoded(X)
ALPHA = RNG.integers(0, 256, (6, 7), np.uint8)
RGBA = np.dstack([X, ALPHA])
SIXTEEN = GREY.astype(np.int64)


def tiff(x, **tags):
    """A TIFF of one strip with these tags, big-endian."""
    numbers = {
        "ImageWidth": 256,
        "ImageLength": 257,
        "BitsPerSample": 258,
        "Compression": 259,
        "Photometric": 262,
        "StripOffsets": 273,
        "SamplesPerPixel": 277,
        "RowsPerStrip": 278,
        "StripByteCounts": 279,
        "MaxSampleValue": 281,
        "SampleFormat": 339,
    }
    height, width = x.shape[:2]
    body = x.tobytes()
    values = {
        "ImageWidth": width,
        "ImageLength": height,
        "BitsPerSample": 8 * x.dtype.itemsize,
        "Compression": 1,
        "Photometric": 1,
        "StripOffsets": 8,
        "SamplesPerPixel": 1,
        "RowsPerStrip": height,
        "StripByteCounts": len(body),
        **tags,
    }
    if x.ndim == 3 and x.shape[2] > 1:  # colours: bits of each channel
        values |= {"Photometric": 2, "SamplesPerPixel": x.shape[2], "BitsPerSample": None}
    order = ">" if x.dtype.str.startswith(">") else "<"
    directory = struct.pack(order + "H", len(values))
    for name in sorted(values, key=numbers.get):
        one = (4, 1, values[name]) if values[name] is not None else (3, x.shape[2], 8 + len(body))
        directory += struct.pack(order + "HHII", numbers[name], *one)
    return (
        (b"MM\0*" if order == ">" else b"II*\0")
        + struct.pack(order + "I", 8 + len(body) + 8)
        + body
        + struct.pack(order + "4H", *[8 * x.dtype.itemsize] * 4)
        + directory
        + bytes(4)
    )


def twelve(x):
    """Values of 12 bits, packed; the rows have an even number of them."""
    high, low = x[:, ::2].astype(int), x[:, 1::2].astype(int)
    packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], -1)
    return packed.astype(np.uint8).reshape(len(x), -1)


EVEN = SIXTEEN[:, :6, 0]
DEEP = {
    "PNG of 16 bits": (png(SIXTEEN * 257, 16, 0), SIXTEEN),
    "PNG of 16 bits, dark": (png(SIXTEEN // 16 * 257, 16, 0), SIXTEEN // 16),
    "PNG of 16 bits, a transparent value": (
        png(SIXTEEN * 257, 16, 0, (b"tRNS", struct.pack(">H", int(GREY[0, 0, 0]) * 257))),
        np.where(SIXTEEN == SIXTEEN[0, 0], 255, SIXTEEN),
    ),
    "PNG of 16 bits, a value that is near": (
        png(SIXTEEN * 257, 16, 0, (b"tRNS", struct.pack(">H", int(GREY[0, 0, 0]) * 257 ^ 1))),
        SIXTEEN,
    ),
    "PNG of 16 bits and colour": (png(X.astype(int) * 257, 16, 2), X),
    "PNG of 16 bits, a transparent colour": (
        png(X.astype(int) * 257, 16, 2, (b"tRNS", (X[0, 0].astype(">u2") * 257).tobytes())),
        np.where((X == X[0, 0]).all(-1, keepdims=True), 255, X),
    ),
    "PNG of 16 bits, a colour that is near": (
        png(X.astype(int) * 257, 16, 2, (b"tRNS", (X[0, 0].astype(">u2") * 257 ^ 1).tobytes())),
        X,
    ),
    "PNG of 16 bits, alpha": (png(RGBA.astype(int) * 257, 16, 6), np.rint(over_white(X, ALPHA))),
    "PNG of 16 bits, grey and alpha": (
        png(np.dstack([GREY, ALPHA]).astype(int) * 257, 16, 4),
        np.rint(over_white(GREY, ALPHA)),
    ),
    "PNG of 2 bits, a transparent value": (
        png(GREY >> 6, 2, 0, (b"tRNS", b"\0\1")),
        np.where(GREY >> 6 == 1, 255, (GREY >> 6) * 85),
    ),
    "PNG of 4 bits, a transparent value": (
        png(GREY >> 4, 4, 0, (b"tRNS", b"\0\7")),
        np.where(GREY >> 4 == 7, 255, (GREY >> 4) * 17),
    ),
    "PNG of 1 bit, a transparent value": (png(GREY >> 7, 1, 0, (b"tRNS", b"\0\0")), GREY * 0 + 255),
    "TIFF of 16 bits": (tiff(SIXTEEN.astype("<u2") * 257), SIXTEEN),
    "TIFF of 16 bits, big-endian": (tiff(SIXTEEN.astype(">u2") * 257), SIXTEEN),
    "TIFF of 16 bits, 0 to 255 as it says": (tiff(SIXTEEN.astype("<u2"), MaxSampleValue=255), SIXTEEN),
    "TIFF of 16 bits, 0 to 4095 as it says": (
        tiff((SIXTEEN * 4095 // 255).astype("<u2"), MaxSampleValue=4095),
        SIXTEEN,
    ),
    "TIFF of 16 bits, signed": (tiff((SIXTEEN << 7).astype("<i2"), SampleFormat=2), SIXTEEN),
    "TIFF of 12 bits": (tiff(twelve(EVEN << 4), ImageWidth=6, BitsPerSample=12), EVEN[..., None]),
    "TIFF of 32 bits": (tiff((SIXTEEN << 23).astype("<i4"), SampleFormat=2), SIXTEEN),
    "TIFF of 32 bits, 0 to 255 as it says": (
        tiff(SIXTEEN.astype("<i4"), SampleFormat=2, MaxSampleValue=255),
        SIXTEEN,
    ),
    "TIFF of 16 bits, white is zero": (tiff((65535 - SIXTEEN * 257).astype("<u2"), Photometric=0), SIXTEEN),
    "TIFF of 8 bits, white is zero": (tiff((255 - SIXTEEN).astype("u1"), Photometric=0), SIXTEEN),
    "TIFF of 16 bits and colour": (tiff(X.astype("<u2") * 257), X),
    "TIFF of 16 bits and colour, big-endian": (tiff(X.astype(">u2") * 257), X),
    "TIFF of 16 bits and colour, black": (tiff(np.zeros((4, 4, 3), "<u2")), np.zeros((4, 4, 1))),
    "TIFF of 16 bits and colour, dark": (tiff(X.astype("<u2") // 8 * 257), X // 8),
    "TIFF of 16 bits, black": (tiff(np.zeros((4, 4), "<u2")), np.zeros((4, 4, 1))),
}


@pytest.mark.parametrize("kind", DEEP)
def test_depths_are_scaled_by_the_bits_that_the_file_says(kind):
    data, expected = DEEP[kind]
    expected = np.broadcast_to(expected, (*expected.shape[:2], 3))
    np.testing.assert_allclose(transforms.decode(data), expected, atol=1 if "alpha" in kind else 0)
    np.testing.assert_array_equal(transforms.decode(pictures.normalized(data, 64)), transforms.decode(data))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (
            tiff(SIXTEEN.astype("<u2")),
            "values of [0-9]+ to [0-9]+ in 16 bits, which would be black: the file does not say",
        ),
        (tiff((SIXTEEN * 16).astype(">u2")), "in 16 bits, which would be black"),
        (tiff(SIXTEEN.astype("<i4"), SampleFormat=2), "in 32 bits, which would be black"),
        (tiff((SIXTEEN * 257).astype("<i4"), SampleFormat=2), "in 32 bits, which would be black"),
        (tiff(twelve(EVEN >> 1), ImageWidth=6, BitsPerSample=12), "in 12 bits, which would be black"),
        (tiff(X.astype("<u2")), "values below 256 in 16 bits, which would be black"),
        (tiff((X.astype(int) * 16).astype(">u2")), "values below 4096 in 16 bits, which would be black"),
        (tiff(X.astype("<u2"), MaxSampleValue=255), "colours of 16 bits with a maximum of 255: scale them"),
        (tiff(np.dstack([X, ALPHA]).astype("<u2")), "values below 256 in 16 bits"),
        (tiff((SIXTEEN - 99).astype("<i2"), SampleFormat=2), "of which the negative ones have no colour"),
        (
            tiff((SIXTEEN * 257).astype("<u2"), MaxSampleValue=4095),
            "above the maximum of 4095 that the file says",
        ),
        (tiff(SIXTEEN.astype("<f4"), SampleFormat=3), "floating-point pictures have no defined white"),
        (
            with_chunks(PNG, (b"cICP", bytes((9, 16, 0, 1)))),
            "PQ pictures of a high dynamic range have no defined white",
        ),
        (with_chunks(PNG, (b"cICP", bytes((9, 18, 0, 1)))), "HLG pictures of a high dynamic range"),
    ],
)
def test_what_has_no_defined_white_is_left_out_with_the_reason(data, reason):
    with pytest.raises(pictures.Unusable, match=f"^undecodable: .*{reason}"):
        pictures.normalized(data, 64)
    with pytest.raises(opening.UndecodableError, match=reason):
        transforms.decode(data, "--image")
