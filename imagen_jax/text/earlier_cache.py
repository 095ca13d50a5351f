"""Embedding caches of earlier versions, which had a format of their own: read once, to be stored as ArrayRecord.

Layout: meta.json, and shard-00000/ with tokens.bin (the tokens of all captions, one after the other), index.bin (a row
per caption) and index.crc32 (its checksum, which the first versions did not write). A process that was killed left the
same files in tmp-*/.
"""

import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.progress import logger
from imagen_jax.storage.locks import acquire_file_lock
from imagen_jax.text import cache_description, cache_files

DESCRIPTION = "meta.json"
_FORMAT = 2
_ROW = np.dtype([("digest", np.uint8, 32), ("start", "<u8"), ("length", "<u4"), ("checksum", "<u4")])


def description(root: Path) -> dict[str, Any] | None:
    """Return the description of an earlier version's cache in a directory; None if there is none.

    Raises:
      ValueError: it is damaged.
    """
    path = root / DESCRIPTION
    if not path.is_file():
        return None
    return cache_description.read(path, root.name, _FORMAT) | {"format": cache_description.FORMAT}


def embeddings(root: Path, token: np.dtype) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, stored tokens) of every caption whose checksum is right; warn of the others.

    Args:
      root: directory of the cache.
      token: type of a stored token, as `cache_files.token_type` gives it.
    """
    for shard in sorted((*root.glob("shard-*"), *root.glob("tmp-*"))):
        index, tokens = shard / "index.bin", shard / "tokens.bin"
        if not (index.is_file() and tokens.is_file()):
            continue
        with index.open("rb") as file:
            if shard.name.startswith("tmp-") and not acquire_file_lock(file, if_unsupported=True):
                continue  # a process of an earlier version is writing it
            content = file.read()
        checksum = shard / "index.crc32"
        if checksum.is_file() and checksum.read_bytes() != f"{zlib.crc32(content):08x}\n".encode():
            logger.warning(f"{index} is damaged: its checksum differs; its captions are embedded again.")
            continue
        num_damaged = 0
        with tokens.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            for row in np.frombuffer(content[: len(content) // _ROW.itemsize * _ROW.itemsize], _ROW):
                start, length = int(row["start"]) * token.itemsize, int(row["length"]) * token.itemsize
                file.seek(min(start, size))
                stored = file.read(length) if start + length <= size else b""
                if stored and zlib.crc32(stored) == row["checksum"]:
                    yield row["digest"][: cache_files.KEY.itemsize].tobytes(), stored
                else:
                    num_damaged += 1
        if num_damaged:
            logger.warning(f"{num_damaged} captions in {tokens} are damaged, and are embedded again.")
