"""Write earlier_cache/: an embedding cache in the format before ArrayRecord, and what was read from it then.

    PYTHONPATH=CHECKOUT python tests/goldens/make_earlier_cache_goldens.py

CHECKOUT is one of version 7979c59 of this repository, the last that wrote this format. numpy 2.3.
"""

import pathlib
import shutil

import numpy as np

from imagen_jax.text.cache import build

DIRECTORY = pathlib.Path(__file__).parent / "earlier_cache"


class Encoder:
    """Embeddings drawn from the letters of a caption."""

    name = description = "letters"
    fingerprint, width, clean_captions = "0123456789abcdef", 8, False

    def clean(self, caption):
        return caption

    def mostly_unknown(self, captions):
        return []

    def encode_ragged(self, captions, batch_size):
        for i, caption in enumerate(captions):
            rng = np.random.default_rng(list(caption.encode()))
            yield i, rng.standard_normal((1 + len(caption) % 5, self.width)).astype(np.float32)


def main():
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    captions = [f"caption {i} of a {color} cat" for i in range(6) for color in ("red", "blue")]
    for dtype in ("float16", "int8"):
        cache = build(captions, Encoder(), DIRECTORY / dtype, dtype=dtype, progress=False, shard_size=5)
        np.savez(DIRECTORY / f"{dtype}.npz", **{caption: cache[caption] for caption in captions})
        root = DIRECTORY / dtype / Encoder.fingerprint
        (root / "share-0-of-1.lock").unlink()
        (root / "shard-00002").rename(root / "tmp-killed")  # as a killed process leaves it
        (root / "tmp-killed" / "index.crc32").unlink()


if __name__ == "__main__":
    main()
