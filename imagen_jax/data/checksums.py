"""Checksums of the metadata of a data set: in SHA256SUMS, which `sha256sum --check` reads too.

Record files are not in it: ArrayRecord keeps checksums in them, and looks at those of each record that it reads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from imagen_jax.storage import input_files

FILE = "SHA256SUMS"
METADATA = (
    "dataset_info.json",
    "features.json",
    "prepared.json",
)  # what is read of each data set that is opened
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)")
_MOST = 2**28  # bytes of a file of metadata


def write(directory: Path) -> None:
    """Stores the checksums of all files in a directory but its record files."""
    names = sorted(
        path.name for path in directory.iterdir() if path.is_file() and ".array_record-" not in path.name
    )
    lines = [f"{_checksum(directory / name)}  {name}\n" for name in names if name != FILE]
    (directory / FILE).write_text("".join(lines))


def check(directory: Path, names: Iterable[str] = METADATA) -> None:
    """Compares files of a data set with their checksums, if it has any.

    Raises:
      ValueError: one line; a file is damaged, or what tells its checksum.
    """
    if not (directory / FILE).exists():
        return
    try:
        content = input_files.read_file(directory / FILE, _MOST).decode("ascii")
        lines = [_LINE.fullmatch(line) for line in content.removesuffix("\n").split("\n")]
        sums = {line[2]: line[1] for line in lines}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{directory / FILE} is damaged; delete it to read the data set unchecked."
        ) from error
    for name in names:
        if name in sums and not (directory / name).is_file():
            raise ValueError(f"{directory} is incomplete: {name} is missing; write it again.")
        if name in sums and _checksum(directory / name) != sums[name]:
            raise ValueError(
                f"{directory / name} is damaged: its checksum differs from that in {FILE}; write the data set "
                f"again, or delete {FILE} if somebody has changed {name} on purpose."
            )
    unknown = [name for name in sums if not (directory / name).exists()]
    if unknown:
        raise ValueError(
            f"{directory} has no {unknown[0]}, of which {FILE} has a checksum: one of them is damaged; write the data "
            f"set again, or delete {FILE}."
        )


def _checksum(path: Path) -> str:
    with input_files.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
