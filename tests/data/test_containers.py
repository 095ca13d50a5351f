"""Hostile pictures: left out with the reason, or read as what they show, within the memory of a worker."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import containers, masks, opening, transforms
from imagen_jax.prepare import pictures
from tests.pictures import encoded

X = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
SMOOTH = np.repeat(np.repeat(X[:2, :2], 16, 0), 16, 1)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


PNG, JPEG, GIF, TIFF = (encoded(X, form) for form in ("PNG", "JPEG", "GIF", "TIFF"))
WEBP, JP2, AVIF, BMP = (encoded(SMOOTH, form) for form in ("WEBP", "JPEG2000", "AVIF", "BMP"))
PIXELS = zlib.compress(b"".join(b"\0" + row.tobytes() for row in X))
START, END = PNG[:33], chunk(b"IEND", b"")


def with_png_size(width, height):
    body = struct.pack(">II", width, height) + PNG[24:29]
    return PNG[:8] + chunk(b"IHDR", body) + PNG[33:]


def with_segments(*segments, tail=b""):
    """A JPEG with more segments before its own."""
    return (
        JPEG[:2]
        + b"".join(b"\xff" + kind + struct.pack(">H", len(body) + 2) + body for kind, body in segments)
        + tail
        + JPEG[2:]
    )


def with_jpeg_size(width, height):
    place = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:place] + struct.pack(">HH", height, width) + JPEG[place + 4 :]


def with_scans(num):
    data = encoded(SMOOTH, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * num + data[-2:]


def with_passes():
    """A JPEG whose three channels stand one after the other, as `jpegtran -scans` makes them, all alike."""
    data = encoded(SMOOTH[..., 0], "JPEG")
    frame, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    channels = b"".join(bytes((i, 0x11, 0)) for i in (1, 2, 3))
    frame_header = b"\xff\xc0\0\x11" + data[frame + 4 : frame + 9] + b"\3" + channels
    scans = b"".join(data[scan : scan + 5] + bytes((i,)) + data[scan + 6 : -2] for i in (1, 2, 3))
    return data[:frame] + frame_header + data[frame + 13 : scan] + scans + data[-2:]


AT = GIF.index(b",", 13 + (3 << (GIF[10] & 7) + 1))  # the picture of a GIF, after its palette


def with_gif_blocks(num):
    return GIF[:AT] + b"!\xfe" + b"\1a" * num + b"\0" + GIF[AT:]


def film(form, num):
    frames = [Image.fromarray(np.full((8, 8, 3), 255 * (i % 2), np.uint8)) for i in range(num)]
    return encoded(
        Image.fromarray(SMOOTH[:8, :8]),
        form,
        save_all=True,
        append_images=frames,
        **({"lossless": True} if form == "WEBP" else {}),
    )


def tiff(*entries, size=(8, 8), offset=8):
    """A TIFF of these tags (number, type, count, value), in one directory."""
    values = [(256, 4, 1, size[0]), (257, 4, 1, size[1]), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    values += [(277, 3, 1, 1), *entries]
    directory = struct.pack("<H", len(values)) + b"".join(
        struct.pack("<HHII", *value) for value in sorted(values)
    )
    return b"II*\0" + struct.pack("<I", 8 + 64) + X[..., 0].tobytes() + directory + bytes(4)


STRIP = [(273, 4, 1, 8), (279, 4, 1, 64)]


def big_tiff(num):
    """One strip for each of `num` numbers that stand in the file."""
    data = tiff((273, 4, num, 400), (279, 4, num, 400))
    return data + bytes(400 - len(data)) + bytes(4 * num)


def with_code(marker, at, new, data=JP2):
    place = data.index(marker) + at
    return data[:place] + new + data[place + len(new) :]


def webp(*chunks):
    body = b"WEBP" + b"".join(
        name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for name, body in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def canvas(width, height):
    return bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")


CODING = JP2.index(b"\xff\x52")
PRECINCTS = b"\xff\x52\0\x12\1" + JP2[CODING + 5 : CODING + 14] + b"\x33" * 6
GREY = np.repeat(X[..., :1], 3, 2)
MANY = 20_000
FEW = 2**14  # chunks and segments that hostile pictures may have here: the true limits would take seconds
SOUND = {
    "PNG of many pieces": (
        START + b"".join(chunk(b"IDAT", PIXELS[i : i + 1]) for i in range(len(PIXELS))) + END,
        X,
    ),
    "PNG of many empty pieces": (START + chunk(b"IDAT", b"") * MANY + chunk(b"IDAT", PIXELS) + END, X),
    "PNG of many texts": (START + chunk(b"tEXt", b"a\0b") * MANY + chunk(b"IDAT", PIXELS) + END, X),
    "PNG of many packed texts": (
        START + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**20))) * 1000 + PNG[33:],
        X,
    ),
    "PNG of many private chunks": (START + chunk(b"prVt", b"") * MANY + PNG[33:], X),
    "PNG of many texts after its pixels": (PNG[:-12] + chunk(b"tEXt", b"a\0b") * MANY + END, X),
    "PNG with a long tail": (PNG + bytes(2**24), X),
    "PNG with a profile of 1 GiB": (
        START + chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2**20)) * 1024) + PNG[33:],
        X,
    ),
    "PNG with EXIF data of 16 MiB": (
        START
        + chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\1\0\0\7\0\1\0\0\0\0\0\0" * 65535 + bytes(2**24))
        + PNG[33:],
        X,
    ),
    "PNG with frames": (film("PNG", 300), SMOOTH[:8, :8]),
    "PNG with two headers": (
        START + chunk(b"IHDR", struct.pack(">II", 10**5, 10**5) + PNG[24:29]) + PNG[33:],
        X,
    ),
    "JPEG of many segments": (with_segments(*[(b"\xe5", b"a" * 9)] * MANY), transforms.decode(JPEG)),
    "JPEG of many EXIF data": (
        with_segments(*[(b"\xe1", b"Exif\0\0" + bytes(65_000))] * 400),
        transforms.decode(JPEG),
    ),
    "JPEG of many comments": (with_segments(*[(b"\xfe", bytes(65_000))] * 400), transforms.decode(JPEG)),
    "JPEG of many profiles": (
        with_segments(*[(b"\xe2", b"ICC_PROFILE\0\1\1" + bytes(65_000))] * 400),
        transforms.decode(JPEG),
    ),
    "JPEG with other bytes between": (
        with_segments((b"\xe5", b""), tail=bytes(2**24)),
        transforms.decode(JPEG),
    ),
    "JPEG of one channel after the other": (with_passes(), transforms.decode(with_passes())),
    "GIF of many blocks": (with_gif_blocks(MANY), transforms.decode(GIF)),
    "GIF with frames": (film("GIF", 500), transforms.decode(encoded(SMOOTH[:8, :8], "GIF"))),
    "GIF with many bytes between": (GIF[:AT] + bytes(MANY) + GIF[AT:], transforms.decode(GIF)),
    "TIFF": (tiff(*STRIP), GREY),
    "TIFF with a long text": (tiff(*STRIP, (270, 2, 2**31, 8)), GREY),
    "TIFF with long numbers": (tiff(*STRIP, (50000, 12, 2**28, 8)), GREY),
    "TIFF with other directories": (tiff(*STRIP, (34665, 4, 1, 72), (330, 4, 2**30, 8)), GREY),
    "TIFF with a profile beyond its end": (tiff(*STRIP, (34675, 7, 2**22, 2**31)), GREY),
    "WebP with frames": (film("WEBP", 300), SMOOTH[:8, :8]),
    "WebP of many chunks": (
        webp((b"VP8X", canvas(32, 32)), *[(b"abcd", b"")] * MANY, (WEBP[12:16], WEBP[20:])),
        transforms.decode(WEBP),
    ),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_lies_around_a_picture_costs_neither_it_nor_the_machine(kind):
    data, expected = SOUND[kind]
    stored = pictures.normalized(data, 64)
    np.testing.assert_array_equal(transforms.decode(stored), expected)
    assert len(stored) < 10_000 + pictures.MAX_EXTRA


HOSTILE = {
    "PNG of too many chunks": (
        START + chunk(b"prVt", b"") * (FEW + 1),
        "too large: more than 16384 chunks",
    ),
    "PNG of 10^10 pixels": (with_png_size(10**5, 10**5), "too large: 100000x100000 pixels, more than"),
    "PNG that is wide": (with_png_size(2**31 - 1, 1), "too large: 2147483647x1 pixels"),
    "PNG of a long side": (
        with_png_size(300, 2**18 + 1),
        "too large: 300x262145 pixels, a side of more than 262144",
    ),
    "PNG without a size": (with_png_size(0, 0), "undecodable"),
    "PNG of nothing else": (PNG[:8], "undecodable"),
    "PNG that promises pixels": (with_png_size(8000, 8000), "undecodable: .*truncated"),
    "JPEG of too many segments": (
        with_segments(*[(b"\xe5", b"")] * (FEW + 1)),
        "too large: more than 16384 segments",
    ),
    "JPEG of too many markers": (
        with_segments(tail=b"\xff\0" * (FEW + 1)),
        "too large: more than 16384 segments",
    ),
    "JPEG of many passes": (with_scans(120), "too large: more than 100 scans"),
    "JPEG of 4 10^9 pixels": (with_jpeg_size(65535, 65535), "too large: 65535x65535 pixels"),
    "GIF of too many blocks": (with_gif_blocks(FEW), "too large: more than 16384 blocks"),
    "GIF of 4 10^9 pixels": (GIF[:6] + b"\xff" * 4 + GIF[10:], "too large: 65535x65535 pixels"),
    "GIF with a large frame": (
        GIF[: AT + 5] + b"\x60\xea" * 2 + GIF[AT + 9 :],
        "too large: .*3600000000 pixels",
    ),
    "GIF of nothing else": (GIF[:13] + b";", "undecodable"),
    "TIFF of many strips": (big_tiff(2**19), "too large: 524288 strips or tiles, more than 262144"),
    "TIFF of strips beyond its end": (
        tiff((273, 4, 2**31, 8), (279, 4, 2**31, 8)),
        "too large: 2147483648 strips",
    ),
    "TIFF of 10^18 pixels": (tiff(*STRIP, size=(2**31, 2**31)), "too large: 2147483648x2147483648 pixels"),
    "TIFF of one huge tile": (
        tiff((322, 4, 1, 2**20), (323, 4, 1, 2**20), (324, 4, 1, 8), (325, 4, 1, 64)),
        "too large: .*MiB to decode",
    ),
    "TIFF of many tags": (
        b"II*\0" + struct.pack("<IH", 8, 65535) + bytes(12 * 65535),
        "too large: 65535 tags, more than 4096",
    ),
    "TIFF that leads beyond its end": (b"II*\0" + struct.pack("<I", 2**31), "undecodable"),
    "WebP of 10^14 pixels": (
        webp((b"VP8X", canvas(2**24, 2**24)), (WEBP[12:16], WEBP[20:])),
        "too large: 16777216x16777216 pixels",
    ),
    "WebP of too many chunks": (
        webp((b"VP8X", canvas(32, 32)), *[(b"abcd", b"")] * (FEW + 1)),
        "too large: more than 16384 chunks",
    ),
    "WebP that takes too much": (
        webp((b"VP8X", canvas(9000, 9000)), (WEBP[12:16], WEBP[20:])),
        "undecodable|too large",
    ),
    "JPEG 2000 larger than it says": (
        with_code(b"\xff\x51", 6, struct.pack(">II", 50000, 50000)),
        "too large: 2442969 tiles",
    ),
    "JPEG 2000 of many tiles": (
        with_code(b"\xff\x51", 6, struct.pack(">8I", 8000, 8000, 0, 0, 8, 8, 0, 0)),
        "too large: 1000000 tiles",
    ),
    "JPEG 2000 of tiny blocks": (
        with_code(b"\xff\x52", 10, b"\0\0"),
        "too large: code blocks of fewer than 256 pixels",
    ),
    "JPEG 2000 of tiny precincts": (
        JP2.replace(JP2[CODING : CODING + 14], PRECINCTS),
        "too large: precincts of fewer than 32 pixels a side",
    ),
    "JPEG 2000 of many boxes": (
        JP2[:12] + struct.pack(">I4s", 8, b"abcd") * 70_000 + JP2[12:],
        "too large: more than 65536 boxes",
    ),
    "JPEG 2000 without pixels": (JP2[: JP2.index(b"jp2c")], "undecodable"),
    "AVIF of 10^9 pixels": (
        with_code(b"ispe", 8, struct.pack(">II", 32000, 32000), AVIF),
        "undecodable|too large",
    ),
    "BMP of 10^10 pixels": (
        BMP[:18] + struct.pack("<ii", 10**5, 10**5) + BMP[26:],
        "too large: 100000x100000 pixels",
    ),
    "BMP that is packed": (
        BMP[:18] + struct.pack("<iiHHI", 10**4, 10**4, 1, 8, 1) + BMP[34:54] + bytes(1024) + b"\1\0" * 9000,
        "undecodable",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pictures_are_left_out_with_the_reason(kind, monkeypatch):
    data, reason = HOSTILE[kind]
    monkeypatch.setattr(containers, "MAX_CHUNKS", FEW)
    monkeypatch.setattr(containers, "MAX_SEGMENTS", FEW)
    with pytest.raises(pictures.Unusable, match=f"^(?:{reason})"):
        pictures.normalized(data, 64)
    with pytest.raises(opening.UndecodableError) as caught:
        transforms.square(data, 8)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="^--mask must be a picture"):
        masks.read(data, "--mask")


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "AVIF"])
def test_time_and_memory_have_limits(form, monkeypatch):
    data = encoded(SMOOTH, form)
    monkeypatch.setattr(opening, "MAX_SECONDS", -1)
    with pytest.raises(pictures.Unusable, match="^too large: more than -1 s to decode$"):
        pictures.normalized(data, 64)
    monkeypatch.setattr(opening, "MAX_SECONDS", 60)
    monkeypatch.setattr(opening, "MAX_MEMORY", 1000)
    with pytest.raises(pictures.Unusable, match="^too large: 32x32 pixels of .* MiB to decode, more than 0$"):
        pictures.normalized(data, 64)
    monkeypatch.setattr(opening, "MAX_PIXELS", 1000)
    with pytest.raises(pictures.Unusable, match="^too large: 32x32 pixels, more than 1000$"):
        pictures.normalized(data, 64)


@pytest.mark.parametrize("data", [encoded(SMOOTH, "JPEG", progressive=True), with_passes()])
def test_passes_of_a_jpeg_take_memory_for_each_pixel(data, monkeypatch):
    assert containers.jpeg(data).has_passes and not containers.jpeg(JPEG).has_passes
    monkeypatch.setattr(opening, "MAX_MEMORY", 32 * 32 * 9)  # it takes 10 for each pixel, with all passes
    with pytest.raises(pictures.Unusable, match="MiB to decode"):
        pictures.normalized(data, 64)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_memory_of_a_worker_stays_below_1_gib():
    """All of the above, and a large picture, in one process."""
    code = """if True:
        import re
        from imagen_jax.prepare import pictures
        from tests.data.test_containers import HOSTILE, SOUND, largest
        for data in (*(row[0] for row in (*SOUND.values(), *HOSTILE.values())), largest()):
            try:
                pictures.normalized(data, 64, 2)
            except pictures.Unusable as error:
                reason = str(error)
        print(re.search(r"VmHWM:\\s+([0-9]+) kB", open("/proc/self/status").read())[1], reason)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peak, reason = done.stdout.split(" ", 1)
    assert int(peak) < 2**20 and reason.startswith("too small")


def largest():
    """A PNG of half the pixels that are read, wide and so flat that it is too small in the end."""
    width = 2**17
    rows = zlib.compressobj(1)
    row = b"\0" + bytes(width * 3)
    content = b"".join(rows.compress(row) for _ in range(512)) + rows.flush()
    return (
        START[:8]
        + chunk(b"IHDR", struct.pack(">II", width, 512) + PNG[24:29])
        + chunk(b"IDAT", content)
        + END
    )


def test_limits_are_those_that_are_documented():
    assert (opening.MAX_BYTES, opening.MAX_PIXELS, opening.MAX_SIDE) == (2**28, 2**27, 2**18)
    assert (opening.MAX_MEMORY, opening.MAX_SECONDS) == (768 * 2**20, 60)
    assert (containers.MAX_CHUNKS, containers.MAX_SEGMENTS, containers.MAX_SCANS) == (2**18, 2**16, 100)


@pytest.mark.parametrize(
    "between", [b"\xff", b"\xff" * 9, b"\0", b"abc", b"\xff\0", b"\xff\xd0", b"\xff\xff\xff\0a\xff\xff"]
)
def test_bytes_between_the_segments_of_a_jpeg_are_passed_over(between):
    place = JPEG.index(b"\xff\xdb")
    data = JPEG[:place] + between + JPEG[place:]
    np.testing.assert_array_equal(transforms.decode(data), transforms.decode(JPEG))
