"""How much is read of one picture and its captions, whatever an input holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from imagen_jax.data import opening
from imagen_jax.prepare.quarantine import Unusable


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bytes of a picture, its pixels, seconds of processor time to decode it, bytes of a caption in UTF-8, captions of
    a picture, and bytes that reading a page of pictures of a .parquet table may take, as it is decompressed as a whole.
    """

    image_bytes: int = opening.MAX_BYTES
    pixels: int = opening.MAX_PIXELS
    seconds: float = opening.MAX_SECONDS
    caption_bytes: int = 2**20
    captions: int = 256
    page_bytes: int = 2**29

    def check_image(self, num_bytes: int) -> None:
        """Raises Unusable if a picture has too many bytes."""
        if num_bytes > self.image_bytes:
            raise Unusable("too large", f"{num_bytes} bytes, more than {self.image_bytes}")

    def check_captions(self, captions: Sequence[str]) -> None:
        """Raises Unusable if captions of a picture are too many, or one is too long."""
        if len(captions) > self.captions:
            raise Unusable("too many captions", f"{len(captions)}, more than {self.captions}")
        for caption in captions:
            if (num := len(caption.encode("utf-8", "surrogatepass"))) > self.caption_bytes:
                raise Unusable("caption too long", f"{num} bytes, more than {self.caption_bytes}")
