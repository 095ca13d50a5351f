"""PNG files with text chunks, written and read."""

import io
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagen_jax.storage import input_files

MAX_BYTES = 2**30  # of a PNG that is read
_MAX_CHUNKS = 2**16  # Pillow writes one for 64 KiB


def encode(x: np.ndarray, texts: Mapping[str, str]) -> bytes:
    """Return a PNG of the pixels x, uint8 [H, W, 3], with text chunks by keyword."""
    information, buffer = PngInfo(), io.BytesIO()
    for key, value in texts.items():
        information.add_itxt(key, value)
    Image.fromarray(x).save(buffer, "PNG", pnginfo=information)
    return buffer.getvalue()


def read(path: Path, fix: str) -> tuple[np.ndarray, dict[str, str]]:
    """Return the pixels, uint8 [H, W, 3], of the PNG of --from-png and the text chunks before them, by keyword.

    Raises:
      ValueError: one line that ends in `fix`; it is no PNG, or is damaged.
    """
    data = input_files.read_given("--from-png", path, MAX_BYTES, "a PNG file", fix)
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"--from-png must be a PNG; {path} is none: {fix}.")
    cause = None
    if not (damage := _damage(data)):
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                # Text chunks after the pixels were added by another program.
                texts = {key: value for key, value in image.info.items() if isinstance(value, str)}
                return np.asarray(image.convert("RGB")), texts
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises almost anything on broken files
            cause, damage = error, " ".join(str(error).split()) or type(error).__name__
    raise ValueError(f"--from-png must be a whole PNG; {path} is damaged ({damage}): {fix}.") from cause


def _damage(data: bytes) -> str:
    """Return what is wrong with the chunks of a PNG or their checksums, "" if nothing; Pillow checks only some."""
    place, kind, num = 8, b"", 0
    while kind != b"IEND":
        if (num := num + 1) > _MAX_CHUNKS:
            return f"it has more than {_MAX_CHUNKS} chunks"
        length = int.from_bytes(data[place : place + 4], "big")
        kind, end = data[place + 4 : place + 8], place + 8 + length
        if len(data) < end + 4:
            return "it is cut off"
        if zlib.crc32(memoryview(data)[place + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            return f"the checksum of a chunk, {kind!r}, differs"
        place = end + 4
    return ""
