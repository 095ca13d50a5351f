"""Captioned pictures of an input, and the records that are stored of them."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from imagen_jax.checks import Verbatim, require
from imagen_jax.data import colors, opening, transforms
from imagen_jax.prepare.captions import stripped
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.parts import Part
from imagen_jax.prepare.quarantine import LeftOut, Unusable

MAX_EXTRA = 2**20  # bytes of metadata, such as texts, of a picture that is stored unchanged
_QUIET = threading.Lock()  # Python's filter of warnings is shared by the whole process


@dataclasses.dataclass(frozen=True)
class Found:
    """A picture with captions; `split` if the input itself has splits."""

    file: str
    image: bytes
    captions: tuple[str, ...]
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class Rules:
    """How pictures become records: limits of their sides in pixels, and fractions of pictures for splits."""

    min_size: int
    max_size: int
    validation_fraction: float = 0.0
    test_fraction: float = 0.0
    limits: Limits = Limits()

    def __post_init__(self):
        fractions = self.validation_fraction, self.test_fraction
        names, rule = "--validation-fraction and --test-fraction", "be at least 0 and below 1 together"
        is_right = min(fractions) >= 0 and sum(fractions) < 1
        require(is_right, names, rule, Verbatim("{} and {}".format(*fractions)), "lower them")

    def splits(self) -> tuple[str, ...]:
        held_out = {"validation": self.validation_fraction, "test": self.test_fraction}
        return ("train", *(split for split, fraction in held_out.items() if fraction))

    def records(self, found: Iterable[Found | LeftOut]) -> Iterator[tuple[str, dict] | LeftOut]:
        """Yield (split, record) for each caption of each picture, and what is left out, in order."""
        for item in found:
            if isinstance(item, LeftOut):
                yield item
                continue
            try:
                captions = cleaned(item.captions)
                self.limits.check_captions(captions)
                self.limits.check_image(len(item.image))
                image = normalized(item.image, self.max_size, self.min_size, self.limits)
            except Unusable as error:
                yield error.of(item.file)
                continue
            split = item.split or split_of(item.image, self.validation_fraction, self.test_fraction)
            yield from ((split, {"image": image, "caption": caption}) for caption in captions)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The job of making records of an origin's pictures, see `parts.Job`.

    `origin.read(part)` yields what a part of a folder, of archives or of tables holds, in order.
    """

    origin: Any
    rules: Rules

    def examples(self, part: Part) -> Iterator[tuple[str, dict] | LeftOut]:
        return self.rules.records(self.origin.read(part))


def split_of(image: bytes, validation_fraction: float, test_fraction: float) -> str:
    """Return the split of a picture by the hash of its bytes in the input.

    Copies under other names are in the same split, and adding or removing other pictures does not change it.
    """
    place = int.from_bytes(hashlib.sha256(image).digest()[:8], "big") / 2**64
    if place < test_fraction:
        return "test"
    return "validation" if place < test_fraction + validation_fraction else "train"


def cleaned(captions: Iterable[str]) -> tuple[str, ...]:
    """Return the captions without blanks around them, invisible ones and repetitions.

    Raises:
      Unusable: no caption remains, or one is not text.
    """
    kept = tuple(dict.fromkeys(filter(None, map(stripped, captions))))
    if not kept:
        raise Unusable("no caption")
    for caption in kept:
        if "\0" in caption:
            raise Unusable("unreadable caption", "it has a NUL character")
        try:
            caption.encode("utf-8")
        except UnicodeEncodeError as error:  # a lone surrogate, from JSON
            raise Unusable("unreadable caption", str(error)) from error
    return kept


def normalized(image: bytes, max_size: int, min_size: int = 1, limits: Limits | None = None) -> bytes:
    """Return the bytes of a picture as they are stored.

    An upright sRGB PNG or JPEG of 8 bits within max_size is stored unchanged; anything else becomes such a PNG, area
    averaged if its longer side exceeds max_size. Runs one at a time in each process.

    Raises:
      Unusable: "undecodable", "too small" (shorter side below min_size) or "too large" (beyond `limits`, or the limits
        of `opening`).
    """
    with _QUIET, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from Pillow about unusual files
        try:  # decodes all of it, to detect damage
            found = opening.opened(image, *((limits.pixels, limits.seconds) if limits else ()))
            size, may_stay = found.image.size, _may_stay(found, image)
            x = transforms.decode_reduced(found, max_size)
        except MemoryError:
            raise
        except Exception as error:
            reason = opening.undecodable(error)
            raise Unusable(reason.kind, reason.reason) from error
        is_reduced = max(size) > max_size
        for side, once in ((min(size), ""), (min(x.shape[:2]), ", once reduced")):
            if side < min_size:
                raise Unusable("too small", f"shorter side {side} < {min_size} pixels{once}")
        return image if may_stay and not is_reduced else transforms.encode_png(x)


def _may_stay(found: opening.Opened, image: bytes) -> bool:
    """Whether a picture can be stored unchanged: a single upright sRGB PNG or JPEG of 8 bits."""
    contents = found.contents
    return (
        found.image.format in ("PNG", "JPEG")
        and contents.depth == 8
        and not contents.has_frames
        and found.orientation == 1
        and colors.is_unchanged(found.image, contents.profile)
        and len(image) - len(contents.data) <= MAX_EXTRA
    )
