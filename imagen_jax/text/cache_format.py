"""The files of an embedding cache: what they hold, and how damage is found. `cache` says what lies where."""

import json
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from imagen_jax.text import model_files

FORMAT = 2
DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "int8": np.dtype(np.int8),
}
ROW = np.dtype([("digest", np.uint8, 32), ("start", "<u8"), ("length", "<u4"), ("checksum", "<u4")])


# --- tokens -------------------------------------------------------------------------------------


def token_type(dtype: str, width: int) -> np.dtype:
    """One token on disk."""
    if dtype == "int8":
        return np.dtype([("scale", "<f4"), ("values", np.int8, (width,))])
    return np.dtype((DTYPES[dtype], (width,)))


def stored(embedding: np.ndarray, dtype: str, caption: str) -> bytes:
    """[L, D] as it lies on disk; ValueError if a value does not fit."""
    largest = np.abs(embedding.astype(np.float32)).max(axis=-1)  # [L]
    with np.errstate(over="ignore", invalid="ignore"):  # Reported below, with the caption and what to do.
        if dtype == "int8":
            stored = np.empty(len(embedding), token_type(dtype, embedding.shape[-1]))
            stored["scale"] = scale = np.maximum(largest / np.float32(127), np.float32(1e-30))
            stored["values"] = np.rint(np.nan_to_num(embedding.astype(np.float32) / scale[:, None]))
            is_finite = np.isfinite(largest).all()
        else:
            stored = embedding.astype(DTYPES[dtype])
            is_finite = np.isfinite(stored).all()
    if not is_finite:
        fix = "delete the cache and build it with dtype (--store) 'bfloat16' or 'float32'"
        if not np.isfinite(largest).all():
            fix = "the encoder's weights are damaged, or its dtype is too small for it: get them again, or try float32"
        raise ValueError(
            f"embeddings stored as {dtype} must be finite in it; got values up to {largest.max()} for {caption!r}: "
            f"{fix}."
        )
    return stored.tobytes()


def restored(tokens: np.ndarray) -> np.ndarray:
    """Tokens from the disk -> [L, D] float32."""
    if tokens.dtype.names:
        return tokens["values"].astype(np.float32) * tokens["scale"][:, None]
    return np.asarray(tokens, np.float32)


# --- files --------------------------------------------------------------------------------------


_META = {
    "format": int,
    "fingerprint": str,
    "encoder": str,
    "width": int,
    "dtype": str,
    "clean_captions": bool,
}


def read_meta(path: Path, fingerprint: str) -> dict[str, Any]:
    """What meta.json says; ValueError if it is damaged or another encoder's."""
    meta = model_files.read_json(path)
    if (meta.get("format"), meta.get("fingerprint")) != (FORMAT, fingerprint):
        raise ValueError(
            f"{path} must be of format {FORMAT} and fingerprint {fingerprint}; got "
            f"{meta.get('format')!r:.80} and {meta.get('fingerprint')!r:.80}: delete that directory and build "
            "it again."
        )
    fields = {key: value for key, value in meta.items() if key != "checksum"}
    if {key: type(value) for key, value in fields.items()} != _META:
        raise damaged_meta(path, f"it must hold {', '.join(_META)} and nothing else")
    if meta["dtype"] not in DTYPES or not 1 <= meta["width"] <= 1 << 20:
        raise damaged_meta(path, f"its dtype is {meta['dtype']!r:.80} and its width {meta['width']}")
    if meta.get("checksum", meta_checksum(meta)) != meta_checksum(meta):
        raise damaged_meta(path, "its checksum differs")
    return meta


def meta_checksum(meta: dict[str, Any]) -> str:
    """Of all that meta.json holds."""
    content = json.dumps({key: meta[key] for key in _META})
    return f"{zlib.crc32(content.encode()):08x}"


def damaged_meta(path: Path, reason: str) -> ValueError:
    """The error to raise for it."""
    return ValueError(
        f"{path} must describe the embeddings beside it, and is damaged: {reason}; delete that directory and build it "
        "again, or restore the file."
    )


class DamagedShardError(ValueError):
    """Nothing of the shard can be used."""


def read_index(shard: Path, has_checksum: bool) -> np.ndarray:
    """The rows of a shard, memory-mapped and verified."""
    path, checksum = shard / "index.bin", shard / "index.crc32"

    def damaged(reason: str) -> DamagedShardError:
        return DamagedShardError(
            f"{shard} is damaged: {reason}; run scripts/embed_text.py with the same options, which moves it aside and "
            "embeds its captions again, or delete it and build the cache again, which embeds only what is missing."
        )

    size = path.stat().st_size if path.is_file() else 0
    if not size or size % ROW.itemsize or not (shard / "tokens.bin").is_file():
        raise damaged("it must hold tokens.bin and a whole index.bin")
    rows = np.memmap(path, ROW, mode="r")
    if has_checksum or checksum.is_file():
        stated = checksum.read_bytes() if checksum.is_file() and checksum.stat().st_size < 16 else b""
        if stated != checksum_line(rows.view(np.uint8)):
            raise damaged("the checksum of index.bin is not that in index.crc32")
    ends = np.cumsum(rows["length"], dtype=np.uint64)
    if rows["start"][0] != 0 or not np.array_equal(rows["start"][1:], ends[:-1]):
        raise damaged("index.bin must say where each caption begins, behind the one before it")
    return rows


def checksum_line(content: Any) -> bytes:
    """What index.crc32 holds."""
    return f"{zlib.crc32(content):08x}\n".encode()


def map_tokens(shard: Path, token: np.dtype, rows: np.ndarray) -> np.ndarray:
    """The tokens of a whole shard, memory-mapped: [tokens] of records, or [tokens, D]."""
    path, expected = shard / "tokens.bin", int(rows["length"].sum(dtype=np.int64)) * token.itemsize
    if path.stat().st_size != expected:
        raise DamagedShardError(
            f"{path} must have {expected} bytes, as its index says; got {path.stat().st_size}: the file is damaged; "
            "run scripts/embed_text.py with the same options, which moves its shard aside and embeds those captions "
            f"again, or delete {shard} and build the cache again, which embeds only what is missing."
        )
    mapped = np.memmap(path, token.base, mode="r")
    return mapped if token.names else mapped.reshape(-1, token.shape[0])


def tokens_of(tokens: np.ndarray, row: np.void) -> np.ndarray | None:
    """The tokens of one caption of a shard; None if their checksum is not the one in the index."""
    found = np.ascontiguousarray(tokens[int(row["start"]) :][: int(row["length"])])
    return found if zlib.crc32(found.view(np.uint8)) == row["checksum"] else None
