"""From encoded pictures to squares: every kind of picture, every window, exact averages."""

import io
import pickle
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from imagen_jax import resize
from imagen_jax.data import colors, opening, transforms
from tests.pictures import encoded


def test_decode_every_kind():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    np.testing.assert_array_equal(transforms.decode(encoded(grey)), grey[..., None].repeat(3, 2))
    deep = encoded(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(transforms.decode(deep), grey[..., None].repeat(3, 2))
    clear = Image.new("RGBA", (4, 3), (255, 0, 0, 0))
    assert (transforms.decode(encoded(clear)) == 255).all()
    half = Image.new("RGBA", (4, 3), (255, 0, 0, 128))
    np.testing.assert_allclose(transforms.decode(encoded(half))[0, 0], [255, 127, 127], atol=1)
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([9, 9, 9, 0, 0, 255])
    assert (transforms.decode(encoded(palette)) == [0, 0, 255]).all()
    assert (transforms.decode(encoded(palette, transparency=1)) == 255).all()
    cmyk = transforms.decode(encoded(Image.new("CMYK", (16, 16), (255, 0, 0, 0)), "JPEG"))
    assert cmyk.shape == (16, 16, 3) and cmyk[0, 0, 0] < 60 and cmyk[0, 0, 2] > 180
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    rgb = grey[..., None].repeat(3, 2)
    turned = transforms.decode(encoded(rgb, exif=exif))
    np.testing.assert_array_equal(turned, np.rot90(rgb, -1))


def test_undecodable_is_one_line():
    whole = encoded(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))
    for data in (
        b"",
        b"hello",
        whole[: len(whole) // 2],
        encoded(np.zeros((4, 4), np.float32), "TIFF"),
    ):
        with pytest.raises(ValueError, match="^Record 3 must be a picture; it cannot be decoded .") as caught:
            transforms.decode(data, "Record 3")
        assert "\n" not in str(caught.value)


def test_square():
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 255
    for size in (4, 8, 12):  # down, same, up
        x = transforms.square(encoded(wide), size)
        assert x.shape == (size, size, 3) and x.dtype == np.float32 and (x == 1).all()


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_large_pictures_shrink_early_with_the_same_result(form):
    x = np.zeros((500, 700, 3), np.uint8)
    x[...] = np.linspace(0, 255, 700).astype(np.uint8)[:, None]
    x[100:300, 200:400] = [200, 30, 90]
    data = encoded(x, form, quality=95)
    early = transforms.square(data, 32)
    full = transforms.decode(data)[:, 100:600].astype(np.float32)
    exact = transforms.to_unit(transforms.resize.area(full, 32))
    assert abs(early - exact).mean() < 0.01


def test_unit_range_round_trip():
    x = np.arange(256, dtype=np.uint8)
    unit = transforms.to_unit(x)
    assert unit.min() == -1 and unit.max() == 1 and unit.dtype == np.float32
    np.testing.assert_array_equal(transforms.from_unit(unit), x)


def with_size(width, height):
    """A small picture whose header says that it is `width` by `height`."""
    data = bytearray(encoded(np.zeros((2, 2), np.uint8)))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def test_pictures_beyond_reason_are_refused_by_their_header_and_large_ones_are_read_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(opening.UndecodableError, match=f"20000x20000 pixels, more than {2**27}"):
            transforms.decode(with_size(20000, 20000))
        with pytest.raises(opening.UndecodableError, match=f"1000000x1000000 pixels, more than {2**27}"):
            transforms.decode(with_size(10**6, 10**6))
        warnings.simplefilter("error")
        for width, height in (
            (10000, 10000),
            (2**14, 2**13),
        ):  # Pillow would warn; here they are only cut off
            with pytest.raises(opening.UndecodableError, match="truncated"):
                transforms.decode(with_size(width, height))


def test_windows():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        height, width = rng.integers(200, 2000, 2)
        draws = rng.random(transforms.NUM_DRAWS)
        assert transforms.window(height, width, "center", draws) == transforms.window(
            height, width, "center", ()
        )
        for crop in ("random", "aspect"):
            top, left, tall, wide = transforms.window(height, width, crop, draws)
            assert 0 <= top <= height - tall and 0 <= left <= width - wide
            if crop == "random":
                assert tall == wide == min(height, width)
        largest = min(height, width * tall / wide) * min(width, height * wide / tall)
        found.append([np.log(wide / tall) / np.log(4 / 3), tall * wide / largest])
    ratio, share = np.array(found).T  # log-uniform in [3/4, 4/3]; uniform in [1/2, 1]; to rounding
    assert abs(ratio).max() < 1.03 and ratio.min() < -0.95 and ratio.max() > 0.95 and abs(ratio.mean()) < 0.05
    assert 0.49 < share.min() < 0.52 and 0.98 < share.max() < 1.01 and abs(share.mean() - 0.75) < 0.01
    lefts = [transforms.window(5, 8, "random", (u, u, u, u))[1] for u in np.arange(400) / 400]
    assert np.bincount(lefts).tolist() == [100, 100, 100, 100]
    for tiny in ((1, 1), (1, 9), (2, 1)):
        assert min(transforms.window(*tiny, "aspect", (0.9, 0.9, 0.0, 0.9))[2:]) == 1


@pytest.mark.parametrize("size", [16, 90, 400])
def test_squares_are_exact_averages_of_the_window(size):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (301, 223, 3), np.uint8)
    part = (range(1, size - 1), range(size - 3, 1, -1))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    lying = encoded(np.rot90(x), exif=exif)
    for crop in transforms.CROPS:
        draws = rng.random(transforms.NUM_DRAWS)
        top, left, height, width = transforms.window(301, 223, crop, draws)
        expected = transforms.to_unit(resize.to_size(x[top : top + height, left : left + width], size))
        for data in (encoded(x), lying):
            np.testing.assert_array_equal(transforms.square(data, size, crop=crop, draws=draws), expected)
        out = np.empty((size - 2, size - 4, 3), np.float32)
        transforms.square(encoded(x), size, crop=crop, draws=draws, part=part, out=out)
        np.testing.assert_array_equal(out, expected[1:-1, 2:-2][:, ::-1])


@pytest.mark.parametrize("crop", transforms.CROPS)
def test_jpegs_that_shrink_while_they_are_decoded_keep_their_window(crop):
    field = Image.fromarray(np.random.default_rng(1).integers(0, 256, (6, 8, 3), np.uint8))
    data = encoded(field.resize((1203, 901), Image.Resampling.BICUBIC), "JPEG", quality=95)
    for draws in np.random.default_rng(2).random((4, transforms.NUM_DRAWS)):
        top, left, height, width = transforms.window(901, 1203, crop, draws)
        x = transforms.decode(data)[top : top + height, left : left + width]
        exact = transforms.to_unit(resize.area(x, 48))
        # Eight pixels are one when it is cut, so that it moves by a quarter of a new pixel at most; a whole
        # one would make a difference of 0.1.
        assert abs(transforms.square(data, 48, crop=crop, draws=draws) - exact).mean() < 0.04


def test_fit_keeps_the_middle():
    x = np.zeros((10, 40, 3), np.uint8)
    x[:, 15:25] = 255
    assert (transforms.fit(x, (5, 5)) == 1).all() and (transforms.fit(x, (20, 20)) == 1).all()


def test_neither_the_limit_of_pillow_nor_its_postscript_is_touched(monkeypatch):
    """The limit belongs to the whole process, and PostScript would start another program."""
    limit = Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2**18)  # whatever others want for their own pictures
    assert transforms.square(encoded(np.zeros((800, 800, 3), np.uint8)), 4).shape == (4, 4, 3)
    assert Image.MAX_IMAGE_PIXELS == 2**18 and limit == 2**30 // 12  # Pillow's own
    postscript = encoded(np.zeros((9, 12, 3), np.uint8), "EPS")
    assert Image.open(io.BytesIO(postscript)).format == "EPS"
    for read in (transforms.decode, opening.opened):
        with pytest.raises(ValueError, match=r"not a picture, or of an unknown format(\): save it as one of .*)?$"):
            read(postscript)


def test_errors_neither_repeat_themselves_nor_tell_addresses():
    class Broken:
        def __str__(self):
            return f"cannot identify image file {io.BytesIO()!r}"

    assert opening.one_line(OSError(Broken())) == "cannot identify image file its bytes"
    with pytest.raises(
        opening.UndecodableError, match="^The file must be a picture; it cannot be decoded .not a"
    ) as caught:
        transforms.decode(b"hello")
    assert caught.value.reason == "not a picture, or of an unknown format"
    assert pickle.loads(pickle.dumps(caught.value)).reason == caught.value.reason


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_windows_lie_in_the_upright_picture_however_it_is_stored(form, orientation, monkeypatch):
    monkeypatch.setattr(colors, "BAND", 40)  # many bands
    exif = Image.Exif()
    exif[0x0112] = orientation
    x = np.random.default_rng(orientation).integers(0, 256, (19, 31, 3), np.uint8)
    data = encoded(x, form, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    np.testing.assert_array_equal(transforms.decode(data), upright)
    top, left, height, width = transforms.window(*upright.shape[:2], "aspect", (0.3, 0.9, 0.1, 0.2))
    expected = resize.to_size(upright[top : top + height, left : left + width], 8)
    made = transforms.square(data, 8, crop="aspect", draws=(0.3, 0.9, 0.1, 0.2))
    np.testing.assert_array_equal(made, transforms.to_unit(expected))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_palette_is_never_a_whole_rgb_picture_beside_its_array():
    """16 MB of indices and the 48 MB of the result, not 64 MB more."""
    data = encoded(Image.new("P", (4096, 4096)))
    code = """if True:
        import re, sys
        from imagen_jax.data import opening, transforms
        peak = lambda: int(re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())[1])
        data = sys.stdin.buffer.read()
        opening.opened(data)
        before = peak()
        transforms.decode(data)
        print(peak() - before)"""
    done = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
    assert 60_000 < int(done.stdout) < 85_000
