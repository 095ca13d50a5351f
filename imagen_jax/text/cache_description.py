"""The description of an embedding cache, embeddings.json: whose embeddings there are, and how they are stored."""

import json
import zlib
from pathlib import Path
from typing import Any

from imagen_jax.storage import files
from imagen_jax.text import cache_files, model_files

FORMAT = 3
NAME = "embeddings.json"
_FIELDS = {
    "format": int, "fingerprint": str, "encoder": str, "width": int, "dtype": str, "clean_captions": bool,
    "checksum": str,
}  # fmt: skip
_FIX = "delete that directory and build it again, or restore the file"


def write(path: Path, description: dict[str, Any]) -> bool:
    """Write the description of a new cache; return False if another process has been first."""
    return files.create(path, json.dumps(description | {"checksum": _checksum(description)}, indent=2) + "\n")


def read(path: Path, fingerprint: str) -> dict[str, Any]:
    """Return the description of a cache; raise ValueError if it is damaged or of another encoder or format."""
    found = model_files.read_json(path)
    if (found.get("format"), found.get("fingerprint")) != (FORMAT, fingerprint):
        raise ValueError(
            f"{path} must be of format {FORMAT} and fingerprint {fingerprint}; got {found.get('format')!r:.80} and "
            f"{found.get('fingerprint')!r:.80}: {_FIX}."
        )
    if {key: type(value) for key, value in found.items()} != _FIELDS:
        raise damaged(path, f"it must hold {', '.join(_FIELDS)} and nothing else")
    if found["dtype"] not in cache_files.DTYPES or not 1 <= found["width"] <= 1 << 20:
        raise damaged(path, f"its dtype is {found['dtype']!r:.80} and its width {found['width']}")
    if found["checksum"] != _checksum(found):
        raise damaged(path, "its checksum differs")
    return found


def _checksum(description: dict[str, Any]) -> str:
    content = json.dumps({key: description[key] for key in _FIELDS if key != "checksum"})
    return f"{zlib.crc32(content.encode()):08x}"


def damaged(path: Path, reason: str) -> ValueError:
    """Return the error for a description that cannot be right."""
    return ValueError(
        f"{path} must describe the embeddings beside it; it is damaged ({reason}): {_FIX}."
    )
