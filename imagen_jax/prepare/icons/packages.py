"""JSON files of an npm package, from its .tgz file or an unpacked directory; nothing is unpacked to disk by name."""

from __future__ import annotations

import gzip
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from imagen_jax.prepare import captions, tar_index, text_files
from imagen_jax.storage import input_files

MAX_FILE = 2**28  # bytes of one file; icons.json of the largest set has 100 MB
MAX_UNPACKED = 2**29  # bytes of a whole package
_PIECE = 2**20


def read(option: str, path: Path, wanted: Iterable[str]) -> dict[str, Any]:
    """Return the JSON files of a package that exist, parsed.

    Args:
      option: option that names the package, such as "--icons", for messages.
      path: a .tgz file, as `npm pack` writes it, or a directory.
      wanted: names of files in the package, such as "icons.json" or "en/data.json".

    Raises:
      ValueError: the package is missing or damaged, or one of the files is too large or not JSON.
    """
    if path.is_dir():
        found = {}
        for name in wanted:
            if (path / name).exists():
                fix = "fetch the package again"
                found[name] = input_files.read_given(option, path / name, MAX_FILE, "a JSON file", fix)
    else:
        found = _members(option, path, wanted)
    return {name: _parsed(option, path, name, content) for name, content in found.items()}


def _members(option: str, path: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    content = input_files.read_given(
        option, path, MAX_UNPACKED, "a .tgz file or a directory", "fetch it with npm pack"
    )
    with tempfile.NamedTemporaryFile() as unpacked:
        _decompress(option, path, content, unpacked)
        groups, damage = tar_index.index(Path(unpacked.name), path.name)
        if damaged := [row for row in damage if row.reason == "damaged archive"]:
            raise _damaged(option, path, damaged[0].detail)
        groups, found = dict(groups), {}
        for name in wanted:
            stem, _, extension = f"package/{name}".partition(".")
            offset, size = groups.get(stem, {}).get(extension, (0, -1))
            if size > MAX_FILE:
                raise _damaged(option, path, f"{name} has {size} bytes, more than {MAX_FILE}")
            if size >= 0:
                found[name] = tar_index.content(unpacked.file, (offset, size))
    return found


def _decompress(option: str, path: Path, content: bytes, target) -> None:
    import io

    try:
        with gzip.open(io.BytesIO(content)) as file:
            num = 0
            while piece := file.read(_PIECE):
                num += len(piece)
                if num > MAX_UNPACKED:
                    raise _damaged(option, path, f"more than {MAX_UNPACKED} bytes unpacked")
                target.write(piece)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(option, path, str(error)) from error
    target.flush()


def _damaged(option: str, path: Path, reason: str) -> ValueError:
    return ValueError(
        f"{option} must be a package as npm publishes it (a .tgz file or a directory); got {path} ({reason}): fetch it "
        "again with npm pack."
    )


def _parsed(option: str, path: Path, name: str, content: bytes) -> Any:
    try:
        return captions.parse_json(text_files.decode(content, name))
    except ValueError as error:
        raise _damaged(option, path, f"{name} is not JSON: {error}") from error
