"""What a mask marks: one table of masks as people make them, and what is right for each."""

import io
import os
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageDraw, ImageFilter

from imagen_jax import resize
from imagen_jax.data import masks, transforms
from tests.pictures import encoded, png

SIDE = 64
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[16:48, 20:40] = True  # what is to be painted
RNG = np.random.default_rng(0)
PHOTO = np.asarray(
    Image.fromarray(RNG.integers(0, 256, (8, 8, 3), np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
)


def grey(low, high, kind=np.uint8):
    return np.where(HOLE, high, low).astype(kind)


def colours(outside, inside):
    return np.where(HOLE[..., None], np.array(inside), np.array(outside)).astype(np.uint8)


def palette(*entries, **options):
    image = Image.fromarray(HOLE.astype(np.uint8)).convert("P")
    image.putdata(HOLE.astype(np.uint8).ravel().tolist())
    image.putpalette([value for entry in entries for value in entry])
    return encoded(image, **options)


def colour_tiff(low, high, *tags):
    """A TIFF of three channels of 16 bits, which Pillow does not write."""
    x = np.stack([grey(low, high, "<u2")] * 3, -1)
    entries = [(256, SIDE), (257, SIDE), (258, None), (259, 1), (262, 2), (273, 134), (277, 3), (278, SIDE)]
    entries += [(279, x.nbytes), *tags]
    directory = struct.pack("<H", len(entries))
    for tag, value in entries:
        directory += (
            struct.pack("<HHII", tag, 3, 3, 128) if value is None else struct.pack("<HHII", tag, 4, 1, value)
        )
    start = b"II*\0" + struct.pack("<I", 8) + directory + bytes(4)
    return start.ljust(128, b"\0") + struct.pack("<3H", 16, 16, 16) + x.tobytes()


def photo_with_hole(form="PNG", **options):
    alpha = np.where(HOLE, 0, 255).astype(np.uint8)[..., None]
    return encoded(np.concatenate([PHOTO, alpha], -1), form, **options)


def soft(image):
    return Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.5))


def premultiplied(x):
    return Image.fromarray(x).convert("RGBa").convert("RGBA")


def lying(x, form="PNG"):
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(np.rot90(x).copy(), form, exif=exif)


X = np.zeros((SIDE, SIDE, 3), np.uint8)
X[50:60] = 255, 0, 0
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
STRIPES = np.tile(np.arange(64, dtype=np.uint8) % 20 // 2 * 25, (64, 1))  # ten colours
ALPHA = np.where(HOLE, 255, 0).astype(np.uint8)
RIGHT = {
    "1 bit": encoded(Image.fromarray(HOLE)),
    "8 bits, 0 and 255": encoded(grey(0, 255)),
    "8 bits, 0 and 1": encoded(grey(0, 1)),
    "8 bits, 0 and 2": encoded(grey(0, 2)),
    "8 bits, 40 and 200": encoded(grey(40, 200)),
    "2 bits": png(grey(0, 3)[..., None], 2, 0),
    "4 bits": png(grey(0, 15)[..., None], 4, 0),
    "16 bits, 0 and 255": encoded(grey(0, 255, np.uint16)),
    "16 bits, 0 and 1": encoded(grey(0, 1, np.uint16)),
    "16 bits, 0 and 65535": encoded(grey(0, 65535, np.uint16)),
    "16 bits of colour, 0 and 255": png(np.stack([grey(0, 255, np.uint16)] * 3, -1), 16, 2),
    "16 bits of colour, 0 and 1": png(np.stack([grey(0, 1, np.uint16)] * 3, -1), 16, 2),
    "16 bits of colour, 0 and 65535": png(np.stack([grey(0, 65535, np.uint16)] * 3, -1), 16, 2),
    "16 bits of colour, two near values": png(np.stack([grey(1000, 1010, np.uint16)] * 3, -1), 16, 2),
    "16 bits of grey and alpha, 0 and 255": png(np.dstack([grey(0, 255), grey(65535, 65535, int)]), 16, 4),
    "16 bits of colour and alpha, 0 and 1": png(np.dstack([grey(0, 1)] * 3 + [grey(65535, 65535, int)]), 16, 6),
    "one blue of 255 on black": encoded(colours((0, 0, 0), (0, 0, 1))),
    "white on grey": encoded(grey(128, 255)),
    "white on grey, soft": encoded(soft(colours((128,) * 3, (255,) * 3))),
    "white on grey, JPEG": encoded(colours((128,) * 3, (255,) * 3), "JPEG"),
    "JPEG that became a PNG": encoded(Image.open(io.BytesIO(encoded(grey(0, 255), "JPEG", quality=98)))),
    "converted to a palette": encoded(Image.fromarray(colours((0, 0, 0), (255, 255, 255))).convert("P")),
    "with a profile": encoded(grey(0, 255), icc_profile=PROFILE),
    "blue on black": encoded(colours((0, 0, 0), (0, 0, 255))),
    "green on black": encoded(colours((0, 0, 0), (0, 255, 0))),
    "dark red on black": encoded(colours((0, 0, 0), (100, 0, 0))),
    "magenta on nearly black": encoded(colours((9, 8, 7), (255, 0, 255))),
    "white on blue": encoded(colours((0, 0, 255), (255, 255, 255))),
    "soft blue on black": encoded(soft(colours((0, 0, 0), (0, 0, 255)))),
    "soft edges": encoded(soft(grey(0, 255))),
    "palette of red and black": palette((0, 0, 0), (255, 0, 0)),
    "palette of 1 and 0": palette((0, 0, 0), (1, 1, 1)),
    "palette of two colours": palette((90, 20, 60), (250, 240, 10)),
    "palette with a transparent entry": palette((0, 0, 0), (0, 90, 200), transparency=0),
    "palette, GIF": palette((0, 0, 0), (255, 255, 255), form="GIF"),
    "GIF with transparency": palette((7, 7, 7), (200, 30, 30), form="GIF", transparency=0),
    "white on an empty layer": encoded(np.dstack([grey(255, 255)] * 3 + [ALPHA])),
    "red on an empty layer": encoded(np.dstack([grey(0, 250), grey(0, 10), grey(0, 20), ALPHA])),
    "thin paint on an empty layer": encoded(np.dstack([grey(255, 255)] * 3 + [ALPHA // 4])),
    "soft paint on an empty layer": encoded(np.dstack([grey(255, 255)] * 3 + [np.asarray(soft(ALPHA))])),
    "premultiplied paint": encoded(premultiplied(np.dstack([grey(255, 255)] * 3 + [np.asarray(soft(ALPHA))]))),
    "grey with alpha": encoded(np.dstack([grey(0, 255), ALPHA])),
    "grey without alpha of its own": encoded(np.dstack([grey(0, 255), grey(255, 255)])),
    "colour without alpha of its own": encoded(np.dstack([colours((0, 0, 0), (255, 255, 255)), grey(255, 255)])),
    "photo with an erased hole": photo_with_hole(),
    "grey photo with an erased hole": encoded(np.dstack([PHOTO[..., 1], 255 - ALPHA])),
    "photo with an erased hole, WebP": photo_with_hole("WEBP", quality=80),
    "photo with an erased hole, TIFF": photo_with_hole("TIFF"),
    "JPEG": encoded(grey(0, 255), "JPEG", quality=60),
    "JPEG of colour": encoded(colours((0, 0, 0), (20, 250, 30)), "JPEG", quality=95, subsampling=0),
    "WebP": encoded(colours((0, 0, 0), (255, 255, 255)), "WEBP", quality=60),
    "WebP without loss, 0 and 1": encoded(colours((0, 0, 0), (1, 1, 1)), "WEBP", lossless=True),
    "JPEG 2000": encoded(grey(0, 255), "JPEG2000"),
    "BMP": encoded(grey(0, 255), "BMP"),
    "TIFF, 0 and 1": encoded(grey(0, 1), "TIFF"),
    "TIFF, white is zero": encoded(Image.fromarray(HOLE), "TIFF", compression="group4"),
    "TIFF of 16 bits": encoded(grey(0, 255, np.uint16), "TIFF"),
    "TIFF of 16 bits, big-endian": encoded(Image.fromarray(grey(0, 4095, ">u2")), "TIFF"),
    "TIFF of 16 bits, white is zero": encoded(Image.fromarray(grey(65535, 0, np.uint16)), "TIFF", tiffinfo={262: 0}),
    "TIFF of 16 bits of colour": colour_tiff(0, 65535),
    "TIFF of 16 bits of colour, 0 and 255": colour_tiff(0, 255),
    "TIFF of 32 bits": encoded(grey(0, 1, np.int32), "TIFF"),
    "TIFF of floats, 0 to 1": encoded(grey(0, 1, np.float32), "TIFF"),
    "TIFF of floats, 0 to 255": encoded(grey(0, 255, np.float32), "TIFF"),
    "CMYK": encoded(Image.fromarray(colours((0, 0, 0), (255, 255, 255))).convert("CMYK"), "TIFF"),
    "lying on its side": lying(grey(0, 255)),
    "lying on its side, JPEG": lying(grey(0, 255), "JPEG"),
    "lying on its side, TIFF": lying(grey(0, 255), "TIFF"),
    "photo with a hole, lying": lying(np.dstack([PHOTO, np.where(HOLE, 0, 255).astype(np.uint8)])),
}  # fmt: skip


@pytest.mark.parametrize("kind", RIGHT)
def test_a_mask_marks_what_its_maker_meant(kind):
    mask = masks.read(RIGHT[kind])
    assert mask.dtype == bool and mask.shape == HOLE.shape
    edge = HOLE ^ np.pad(HOLE, 2)[4:, 2:-2] | HOLE ^ np.pad(HOLE, 2)[:-4, 2:-2]
    edge |= HOLE ^ np.pad(HOLE, 2)[2:-2, 4:] | HOLE ^ np.pad(HOLE, 2)[2:-2, :-4]
    is_blurred = any(word in kind for word in ("soft", "JPEG", "WebP", "premultiplied"))
    np.testing.assert_array_equal(mask[~edge] if is_blurred else mask, HOLE[~edge] if is_blurred else HOLE)


def drawn(width, colour=255, size=(200, 300)):
    image = Image.new("L", size[::-1])
    ImageDraw.Draw(image).line((7, 190, 290, 11), colour, width)
    return image


@pytest.mark.parametrize(
    ("image", "marked"),
    [
        (encoded(Image.new("L", (9, 7), 255)), 63),
        (encoded(Image.new("L", (9, 7), 1)), 63),
        (encoded(Image.new("RGB", (9, 7), "white"), "JPEG"), 63),
        (encoded(Image.new("1", (1, 1), 1)), 1),
        (encoded(np.pad([[1]], ((7, 6), (3, 9))).astype(np.uint8)), 1),
        (encoded(drawn(1)), 284),
        (encoded(drawn(1, 3)), 284),
        (encoded(np.repeat([0, 128, 255, 128, 0], 9).reshape(5, 9).astype(np.uint8)), 27),
    ],
)
def test_all_of_it_one_pixel_and_one_line(image, marked):
    assert masks.read(image).sum() == marked


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"hello", "must be a picture; got not a picture, or of an unknown format"),
        (encoded(grey(0, 255))[:70], "must be a picture; got .*truncated"),
        (encoded(grey(0, 0)), "must mark something to paint; got none of 4096 pixels"),
        (encoded(grey(0, 0, np.uint16)), "must mark something to paint"),
        (encoded(Image.new("L", (64, 64), 3), "JPEG"), "must mark something to paint"),
        (encoded(grey(128, 128)), "128 everywhere, neither black nor white"),
        (encoded(PHOTO), "a picture of many (colours|shades) without transparency"),
        (encoded(PHOTO, "JPEG"), "a picture of many (colours|shades) without transparency"),
        (encoded(Image.fromarray(PHOTO).convert("L")), "a picture of many shades"),
        (encoded(RNG.integers(0, 256, (64, 64, 3), np.uint8)), "a picture of many"),
        (encoded(np.dstack([PHOTO, grey(255, 255)])), "a picture of many"),
        (encoded(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))), "a picture of many shades"),
        (encoded(np.arange(4096).reshape(64, 64).astype(np.uint8) // 64), "values of 0 to 3, as labels have"),
        (encoded((HOLE * 1 + (np.arange(64) > 60) * 7).astype(np.uint16)), "values of 0 to 7, as labels have"),
        (encoded(np.where(np.roll(HOLE, 9), 128, grey(0, 255)).astype(np.uint8)), "638 pixels of 128 between"),
        (encoded(np.where(np.roll(HOLE, 20), 1, grey(0, 255)).astype(np.uint8)), "pixels of 1 between 0 and 255"),
        (encoded(np.where(HOLE[..., None], (0, 90, 0), X).astype(np.uint8)), "pixels of 90 between 0"),
        (encoded(colours((200, 0, 0), (200, 0, 0))), "the colour \\(200, 0, 0\\) everywhere"),
        (encoded(np.dstack([grey(0, 0)] * 3 + [ALPHA])), "black beside transparency"),
        (encoded(np.dstack([grey(0, 0)] * 3 + [255 - ALPHA])), "black beside transparency"),
        (encoded(np.dstack([grey(0, 255)] * 3 + [np.tile(ALPHA[:, 30:31], 64)])), "a few colours beside"),
        (encoded(np.dstack([STRIPES, 250 - STRIPES, STRIPES, ALPHA])), "a few colours beside"),
        (encoded(np.dstack([grey(0, 255)] * 3 + [grey(0, 0)])), "transparent everywhere"),
        (encoded(colours((255, 0, 0), (76, 76, 76))), "two colours of which neither is lighter"),
        (encoded(soft(colours((255, 0, 0), (0, 255, 0)))), "colours without a black background"),
        (encoded(grey(-1, 1, np.int32), "TIFF"), "must have values from 0 up; got -1 to 1"),
        (encoded(grey(0, np.nan, np.float32), "TIFF"), "must have finite values; got NaN or infinity"),
    ],
)  # fmt: skip
def test_what_could_mean_either_is_refused_in_one_line(image, message):
    with pytest.raises(ValueError, match=f"^--mask m.png .*{message}") as caught:
        masks.read(image, "--mask m.png")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [(8, 8), (12, 7), (300, 300), (37, 512)])
def test_a_pixel_is_painted_if_any_part_of_it_is(size):
    """As `resize.area` and `ceil` have it where the result is smaller, which a cascade does."""
    mask = np.asarray(drawn(1)) > 0
    inside = mask[transforms.middle(*mask.shape, size)]
    fitted = masks.fit(mask, size)
    assert fitted.shape == (*size, 1) and fitted.dtype == np.float32
    if size[0] <= inside.shape[0] and size[1] <= inside.shape[1]:
        expected = np.ceil(resize.area(inside[..., None].astype(np.float32), size))
        np.testing.assert_array_equal(fitted, np.minimum(expected, 1))
    rows, columns = np.nonzero(inside)
    places = rows * size[0] // inside.shape[0], columns * size[1] // inside.shape[1]
    assert fitted[places].all() and 0 < fitted.sum() < fitted.size / 2
    lone = np.zeros((300, 300), bool)
    lone[17, 200] = True
    assert masks.fit(lone, (16, 16)).sum() == 1


def test_the_middle_is_that_of_the_picture_and_nothing_is_lost_in_silence(tmp_path):
    image = np.zeros((256, 512, 3), np.uint8)
    mask = np.zeros((256, 512), bool)
    mask[40:90, 200:260] = True
    image[mask] = 255
    np.testing.assert_array_equal(
        masks.fit(mask, (64, 64)) > 0, transforms.fit(image, (64, 64))[..., :1] > -1
    )

    left = np.zeros((256, 512), np.uint8)
    left[:, :100] = 255  # the middle begins at 128
    file = tmp_path / "mask.png"
    file.write_bytes(encoded(left))
    with pytest.raises(
        ValueError, match="within the middle that is used, rows 0 to 255 and columns 128 to 383"
    ):
        masks.load("--mask", file, (256, 512), (16, 16))
    assert masks.load("--mask", file, (256, 512), (16, 32))[0].sum() == 16 * 7
    left[:, :192] = 255
    file.write_bytes(encoded(left))
    fitted, report = masks.load("--mask", file, (256, 512), (16, 16))
    assert fitted.sum() == 64
    assert report == (
        "--mask: 64 of 256 pixels of the result are painted; 32768 of the 49152 pixels that it marks lie outside of "
        "the middle that is used."
    )
    with pytest.raises(ValueError, match="must have the size of --image, 512x300 pixels; got 512x256"):
        masks.load("--mask", file, (300, 512), (16, 16))


@pytest.mark.parametrize("kind", ["a folder", "a pipe", "a device", "too large"])
def test_what_is_no_file_is_named(tmp_path, kind, monkeypatch):
    path = {"a folder": tmp_path, "a device": "/dev/zero"}.get(kind, tmp_path / "mask.png")
    if kind == "a pipe":
        os.mkfifo(path)
    if kind == "too large":
        path.touch()
        os.truncate(path, 3 * 2**30)
    expected = "at most 268435456 bytes; got .*mask.png, which has 3221225472" if kind == "too large" else f" is {kind}"
    with pytest.raises(ValueError, match=f"^--mask must .*{expected}"):
        masks.load("--mask", path, (9, 9), (8, 8))
