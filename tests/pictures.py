"""Pictures as bytes, of kinds that Pillow does not write."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encoded(image, form="PNG", **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, form, **options)
    return buffer.getvalue()


def over_white(x, alpha):
    alpha = alpha[..., None] / 255
    return x * alpha + 255 * (1 - alpha)


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
