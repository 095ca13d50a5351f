"""One captioned picture as it was found, and what is stored of it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import warnings
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image, UnidentifiedImageError

from imagen_jax import resize
from imagen_jax.data import transforms
from imagen_jax.data.quarantine import LeftOut, Unusable

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CAPTIONS = ("caption", "text")  # what a column, field or feature of captions may be called
# What Pillow may take the bytes for, whatever the file is called. It would hand PostScript to another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
_TURNED = (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # where a PNG may say that it lies on its side


@dataclasses.dataclass(frozen=True)
class Found:
    """A picture with captions; `split` if the input itself has splits."""

    file: str
    image: bytes
    captions: tuple[str, ...]
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Rules:
    """How pictures become records: sizes in pixels, and shares of pictures for splits."""

    min_size: int
    max_size: int
    validation_fraction: float = 0.0
    test_fraction: float = 0.0

    def splits(self) -> tuple[str, ...]:
        held_out = {"validation": self.validation_fraction, "test": self.test_fraction}
        return ("train", *(split for split, fraction in held_out.items() if fraction))

    def records(self, found: Iterable[Found | LeftOut]) -> Iterator[tuple[str, dict] | LeftOut]:
        """(split, record) for each caption of each picture, and what is left out, in order."""
        for item in found:
            if isinstance(item, LeftOut):
                yield item
                continue
            try:
                captions = cleaned(item.captions)
                image = normalized(item.image, self.max_size, self.min_size)
            except Unusable as error:
                yield error.of(item.file)
                continue
            split = item.split or split_of(item.image, self.validation_fraction, self.test_fraction)
            yield from ((split, {"image": image, "caption": caption}) for caption in captions)


def split_of(image: bytes, validation_fraction: float, test_fraction: float) -> str:
    """The split of a picture by the hash of its bytes as found.

    Copies under other names stand in the same split, and it stays when other pictures come or go.
    """
    place = int.from_bytes(hashlib.sha256(image).digest()[:8], "big") / 2**64
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


def lines(content: bytes, where: str) -> tuple[str, ...]:
    """The captions in a text file, one a line. Raises Unusable if it is not UTF-8."""
    try:
        return tuple(content.decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise Unusable("unreadable caption", f"{where} is not UTF-8: {error}") from error


def json_caption(content: bytes, where: str, keys: tuple[str, ...] = CAPTIONS) -> tuple[str, ...]:
    """The caption in a JSON object, none if it has none. Raises Unusable if it cannot be read."""
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unusable("unreadable caption", f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise Unusable("unreadable caption", f"{where} is not a JSON object")
    caption = next((row[key] for key in keys if row.get(key) is not None), None)
    if caption is None:
        return ()
    if not isinstance(caption, str):
        raise Unusable("unreadable caption", f"{where}: expected text, got {json.dumps(caption)[:60]}")
    return (caption,)


def cleaned(captions: Iterable[str]) -> tuple[str, ...]:
    """The captions without blanks around them, empty ones and repetitions. Raises Unusable if none is left."""
    kept = tuple(dict.fromkeys(filter(None, (caption.strip() for caption in captions))))
    if not kept:
        raise Unusable("no caption")
    for caption in kept:
        try:
            caption.encode("utf-8")
        except UnicodeEncodeError as error:  # half of a surrogate pair, from JSON
            raise Unusable("unreadable caption", str(error)) from error
    return kept


def normalized(image: bytes, max_size: int, min_size: int = 1) -> bytes:
    """A picture's bytes as they are stored.

    An upright RGB PNG or JPEG within max_size keeps its bytes; anything else becomes an RGB PNG,
    area averaged if its longer side exceeds max_size.

    Raises:
      Unusable: "undecodable", "too small" (shorter side below min_size) or "too large" (beyond
        transforms.MAX_PIXELS, which the header tells: it is not decoded).
    """
    with _pillow_quiet():
        size, may_stay = _look(image)
        if size[0] * size[1] > transforms.MAX_PIXELS:
            raise Unusable("too large", f"{size[0]}x{size[1]} pixels, more than {transforms.MAX_PIXELS}")
        try:  # all of it, to be sure that it is whole
            x = transforms.decode(image)
        except ValueError as error:
            raise Unusable("undecodable", str(error)) from error
        if min(size) < min_size:
            raise Unusable("too small", f"shorter side {min(size)} < {min_size} pixels")
        if max(size) > max_size:
            scale = max_size / max(x.shape[:2])
            smaller = tuple(max(1, round(side * scale)) for side in x.shape[:2])
            x = np.rint(resize.area(x, smaller)).astype(np.uint8)
        elif may_stay and _upright(image):
            return image
        return transforms.encode_png(x)


def _look(image: bytes) -> tuple[tuple[int, int], bool]:
    """From the header alone: (width, height), and whether it is an RGB PNG or JPEG."""
    try:
        with _opened(image) as opened:
            plain = opened.mode == "RGB" and not opened.has_transparency_data
            return opened.size, plain and opened.format in ("PNG", "JPEG")
    except UnidentifiedImageError as error:
        raise Unusable("undecodable", "not a picture, or of an unknown format") from error
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise Unusable("undecodable", f"cannot be opened as a picture: {error}") from error


def _opened(image: bytes) -> Image.Image:
    Image.init()  # loads the plugins, once
    return Image.open(io.BytesIO(image), formats=[form for form in FORMATS if form in Image.OPEN])


def _upright(image: bytes) -> bool:
    """Whether the EXIF data of a sound PNG or JPEG, if any, leaves the picture as it lies."""
    with _opened(image) as opened:
        if opened.format == "PNG" and not any(mark in image for mark in _TURNED):
            return True  # reading the EXIF data of a PNG would decode it once more
        return opened.getexif().get(0x0112, 1) == 1


@contextlib.contextmanager
def _pillow_quiet() -> Iterator[None]:
    """Without Pillow's own limit of size, as ours holds, and its remarks about odd files."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
