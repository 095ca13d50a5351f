"""Every kind of picture has the colours that its maker saw, after preparation and as what a user gives to sampling."""

import struct
import zlib
from importlib.metadata import version

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from imagen_jax.data import transforms
from imagen_jax.prepare import pictures
from imagen_jax.sampling import fitting
from tests.pictures import encoded, over_white, with_chunks

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
if int(version("pillow").split(".")[0]) < 13:
    # It cannot read its own TIFFs of YCbCr, and writes grey PNGs with 8 bits whatever it is asked for.
    WRITTEN["TIFF"] = (WRITTEN["TIFF"][0].removesuffix(" YCbCr"), *WRITTEN["TIFF"][1:])
    WRITTEN["PNG"] = (WRITTEN["PNG"][0], [{}, {"optimize": True}], 0)


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


RNG = np.random.default_rng(5)
X = RNG.integers(0, 256, (6, 7, 3), np.uint8)
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
