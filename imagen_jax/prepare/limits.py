"""Limits of the size of one picture and its captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from imagen_jax.data import opening
from imagen_jax.prepare.quarantine import Unusable


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of what is read."""

    image_bytes: int = opening.MAX_BYTES  # of an encoded picture
    pixels: int = opening.MAX_PIXELS  # of a picture
    seconds: float = opening.MAX_SECONDS  # of processor time to decode a picture
    caption_bytes: int = 2**20  # of a caption in UTF-8
    captions: int = 256  # of a picture
    page_bytes: int = 2**29  # of memory to read a page of pictures of a .parquet table, decompressed as a whole

    def check_image(self, num_bytes: int) -> None:
        """Raise Unusable if a picture has too many bytes."""
        if num_bytes > self.image_bytes:
            raise Unusable("too large", f"{num_bytes} bytes, more than {self.image_bytes}")

    def check_captions(self, captions: Sequence[str]) -> None:
        """Raise Unusable if a picture has too many captions, or one is too long."""
        if len(captions) > self.captions:
            raise Unusable("too many captions", f"{len(captions)}, more than {self.captions}")
        for caption in captions:
            if (num := len(caption.encode("utf-8", "surrogatepass"))) > self.caption_bytes:
                raise Unusable("caption too long", f"{num} bytes, more than {self.caption_bytes}")
