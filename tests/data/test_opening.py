"""Every kind of picture has the colours that its maker saw, after preparation and as what a user gives to sampling."""

import io
import struct
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from imagen_jax.data import opening, profiles, transforms
from imagen_jax.prepare import pictures
from imagen_jax.sampling import fitting

TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(x, -1)[::-1],
    8: lambda x: np.rot90(x),
}
TURNED = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF", "MPO")  # what has EXIF data
# format -> (modes, options, largest difference)
WRITTEN = {
    "PNG": ("1 L LA I;16 P RGB RGBA", [{}, {"bits": 4}, {"bits": 2}, {"optimize": True}], 0),
    "JPEG": (
        "1 L RGB CMYK YCbCr",
        [{"quality": 100, "subsampling": 0}, {"quality": 100, "progressive": True}],
        40,
    ),
    "MPO": ("L RGB CMYK YCbCr", [{"quality": 100, "subsampling": 0}], 40),
    "WEBP": ("RGB RGBA L LA", [{"lossless": True, "exact": True}], 0),
    "GIF": ("1 L P", [{}, {"interlace": 0}], 0),
    "BMP": ("1 L P RGB RGBA", [{}], 0),
    "TIFF": (
        "1 L LA I I;16 I;16B P PA RGB RGBA RGBX CMYK YCbCr",
        [{}, *({"compression": name} for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits"))],
        0,
    ),
    "AVIF": ("L RGB RGBA", [{"quality": 100, "subsampling": "4:4:4"}], 16),
    "JPEG2000": ("L LA I;16 RGB RGBA", [{}, {"no_jp2": True}], 0),
}


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def over_white(x, alpha):
    alpha = alpha[..., None] / 255
    return x * alpha + 255 * (1 - alpha)


def made(mode, x, alpha, rng, form):
    """A picture in a mode, from colours uint8 [H, W, 3] and alpha [H, W]; the colours that it shows; save options."""
    grey = x[..., 0]
    as_grey = grey[..., None].repeat(3, 2)
    if mode == "1":
        bits = grey > 127
        return Image.fromarray(bits), np.where(bits, 255, 0)[..., None].repeat(3, 2), {}
    if mode in ("P", "PA"):
        palette = rng.integers(0, 256, (5, 3), np.uint8)
        index = (grey % 5).astype(np.uint8)
        image = Image.frombytes("P", index.shape[::-1], index.tobytes())
        image.putpalette(palette.tobytes())
        if mode == "PA":
            image = image.convert("PA")
            image.putalpha(Image.fromarray(alpha))
            return image, over_white(palette[index], alpha), {}
        if form in ("PNG", "GIF") and alpha[0, 0] % 2:
            return image, over_white(palette[index], np.where(index == 2, 0, 255)), {"transparency": 2}
        if form == "PNG" and alpha[0, 0] % 3 == 0:
            table = rng.integers(0, 256, 5, np.uint8)
            return image, over_white(palette[index], table[index]), {"transparency": table.tobytes()}
        return image, palette[index], {}
    if mode in ("I;16", "I;16B", "I"):
        kind = {"I;16": "<u2", "I;16B": ">u2", "I": np.int32}[mode]
        factor = 2**23 + 2**15 + 2**7 if mode == "I" else 257
        grey = np.maximum(grey, 16)  # darker ones are refused
        as_grey = grey[..., None].repeat(3, 2)
        deep = (grey.astype(np.int64) * factor).astype(kind)
        image = Image.fromarray(deep)
        assert image.mode == mode
        if form == "PNG" and mode == "I;16" and alpha[0, 0] % 2:
            clear = np.where(deep == deep[0, 0], 0, 255)
            return image, over_white(as_grey, clear), {"transparency": int(deep[0, 0])}
        return image, as_grey, {}
    if mode == "L":
        if form == "PNG" and alpha[0, 0] % 2:
            clear = np.where(grey == grey[0, 0], 0, 255)
            return Image.fromarray(grey), over_white(as_grey, clear), {"transparency": int(grey[0, 0])}
        return Image.fromarray(grey), as_grey, {}
    if mode == "LA":
        return (
            Image.merge("LA", (Image.fromarray(grey), Image.fromarray(alpha))),
            over_white(as_grey, alpha),
            {},
        )
    image = Image.fromarray(x)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(alpha))
        expected = (
            x if form == "BMP" else over_white(x, alpha)
        )  # a BMP of 32 bits says nothing of transparency
        return image, expected, {}
    if mode == "CMYK":
        return image.convert("CMYK"), x, {}
    if mode == "RGB" and form == "PNG" and alpha[0, 0] % 2:
        clear = np.where((x == x[0, 0]).all(-1), 0, 255)
        return image, over_white(x, clear), {"transparency": tuple(int(value) for value in x[0, 0])}
    return (image if mode == "RGB" else image.convert(mode)), x, {}


@hypothesis.settings(max_examples=250, deadline=None, derandomize=True, database=None)
@hypothesis.given(
    kind=st.sampled_from([(form, mode) for form, (modes, _, _) in WRITTEN.items() for mode in modes.split()]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 2**32 - 1),
    orientation=st.integers(1, 8),
    data=st.data(),
)
def test_any_picture_that_pillow_writes_has_its_colours(
    tiny_configs, tmp_path_factory, kind, size, seed, orientation, data
):
    form, mode = kind
    _, choices, difference = WRITTEN[form]
    options = dict(data.draw(st.sampled_from(choices)))
    rng = np.random.default_rng(seed)
    if difference:  # compression changes noise more than even areas
        size = tuple(max(side, 4) for side in size)
        x = np.broadcast_to(rng.integers(0, 256, 3, np.uint8), (*size, 3)).copy()
    else:
        x = rng.integers(0, 256, (*size, 3), np.uint8)
    alpha = (
        rng.integers(0, 256, size, np.uint8) if not difference else np.full(size, rng.integers(256), np.uint8)
    )
    bits = options.get("bits", 8) if mode == "L" else options.pop("bits", 8) and 8
    if bits < 8:
        x = (x >> (8 - bits)) * np.uint8(255 // (2**bits - 1))
    image, expected, more = made(mode, x, alpha, rng, form)
    if bits < 8 and "transparency" in more:
        more["transparency"] = more["transparency"] * (2**bits - 1) // 255
    if form in TURNED:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
        expected = TURNS[orientation](expected)
    encoded_picture = encoded(image, form, **options, **more)
    if mode == "YCbCr":  # stored in other steps
        difference = max(difference, 3)
    stored = transforms.decode(pictures.normalized(encoded_picture, 2048))
    np.testing.assert_array_equal(stored, transforms.decode(encoded_picture))
    file = tmp_path_factory.getbasetemp() / "given"
    file.write_bytes(encoded_picture)
    given = fitting.fit_inputs(tiny_configs[:1], {"image": file})[0]["image"]  # as sample.py does
    np.testing.assert_array_equal(given, transforms.fit(stored, (8, 8)))
    assert stored.shape == expected.shape
    np.testing.assert_allclose(stored, expected, atol=difference + 1.01)


def png(x, depth, colour_type, *chunks, palette=None):
    """A PNG of [H, W, C] in a depth and type that Pillow does not write, with more chunks before them."""
    height, width = x.shape[:2]
    if depth >= 8:
        rows = x.astype(f">u{depth // 8}").reshape(height, -1).view(np.uint8)
    else:
        bits = np.unpackbits(x.astype(np.uint8)[..., None], axis=-1)[..., -depth:]
        rows = np.packbits(bits.reshape(height, -1), axis=-1)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    palette = [(b"PLTE", palette)] if palette else []
    return assembled((b"IHDR", header), *palette, *chunks, (b"IDAT", content), (b"IEND", b""))


def assembled(*chunks):
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def with_chunks(data, *chunks, at=33):
    """A PNG with further chunks after its header, or before its end."""
    extra = assembled(*chunks)[8:]
    place = at if at >= 0 else len(data) - 12
    return data[:place] + extra + data[place:]


RNG = np.random.default_rng(5)
X = RNG.integers(0, 256, (6, 7, 3), np.uint8)
GREY = X[..., :1]
PNG = encoded(X)
LONG = b"the history of an editor " * 100_000
TEXTS = {
    "zTXt": [(b"zTXt", b"History\0\0" + zlib.compress(LONG))],
    "iTXt, compressed": [(b"iTXt", b"History\0\1\0en\0\0" + zlib.compress(LONG))],
    "iTXt": [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + LONG)],
    "XMP, compressed": [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG))],
    "tEXt": [(b"tEXt", b"History\0" + LONG)],
    "more than 64 MiB together": [
        (b"zTXt", b"a%d\0\0" % i + zlib.compress(bytes(900_000))) for i in range(80)
    ],
    "a bomb of 500 MiB": [(b"zTXt", b"bomb\0\0" + zlib.compress(bytes(2**20)) * 500)],
    "a damaged one": [(b"zTXt", b"History\0\0hello"), (b"iTXt", b"x"), (b"tEXt", b""), (b"zTXt", b"a\0\7b")],
    "a long profile": [(b"iCCP", b"p\0\0" + zlib.compress(RNG.integers(0, 256, 2**21, np.uint8).tobytes()))],
    "a private chunk": [(b"prVt", bytes(3 * 2**20))],
    "a wrong checksum": None,
}


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("at", [33, -1])
def test_text_beside_the_pixels_costs_no_picture(kind, at):
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    if TEXTS[kind] is None:
        data = with_chunks(PNG, (b"tEXt", b"Title\0Cat"), at=at).replace(b"Cat", b"Dog")
    else:
        data = with_chunks(PNG, *TEXTS[kind], at=at)
    np.testing.assert_array_equal(transforms.decode(data), X)
    stored = pictures.normalized(data, 64)
    np.testing.assert_array_equal(transforms.decode(stored), X)
    assert (stored == data) == (len(data) - len(PNG) <= pictures.MAX_EXTRA)
    assert (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY) == limits


def exif(orientation, order=">", kind=3):
    code = f"{order}HHI{'HH' if kind == 3 else 'I'}"
    value = (orientation, 0) if kind == 3 else (orientation,)
    start = b"MM\0*" if order == ">" else b"II*\0"
    return start + struct.pack(f"{order}IH", 8, 1) + struct.pack(code, 0x0112, kind, 1, *value) + bytes(4)


HEX = b"\nexif\n      %d\n" % (len(exif(6)) + 6) + (b"Exif\0\0" + exif(6)).hex().encode()
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"eXIf", exif(6))],
        [(b"eXIf", exif(6, "<"))],
        [(b"eXIf", exif(6, "<", 4) + bytes(100_000))],
        [(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(HEX))],
        [(b"tEXt", b"Raw profile type APP1\0" + HEX)],
        [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)],
        [(b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0key\0" + zlib.compress(XMP + LONG))],
        [(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.replace(b"6", b"3")), (b"eXIf", exif(6))],
        [(b"tEXt", b"Title\0cat"), (b"eXIf", exif(6)), (b"tEXt", b"Author\0me")],
    ],
)
@pytest.mark.parametrize("at", [33, -1])
def test_a_png_that_lies_on_its_side_says_so_in_many_ways(chunks, at):
    data = with_chunks(PNG, *chunks, at=at)
    np.testing.assert_array_equal(transforms.decode(data), np.rot90(X, -1))
    np.testing.assert_array_equal(transforms.decode(pictures.normalized(data, 64)), np.rot90(X, -1))


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
