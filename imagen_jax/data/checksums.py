"""Checksums of the metadata of a data set in SHA256SUMS, in the format of `sha256sum --check`.

Record files are not listed: ArrayRecord stores checksums in them and verifies those of each record that it reads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from imagen_jax.storage import input_files

FILE = "SHA256SUMS"
METADATA = ("dataset_info.json", "features.json", "prepared.json")  # verified when a data set is opened
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)")
_MOST = 2**28  # bytes of a metadata file


def write(directory: Path) -> None:
    """Store the checksums of all files in a directory except its record files."""
    names = sorted(
        path.name for path in directory.iterdir() if path.is_file() and ".array_record-" not in path.name
    )
    lines = [f"{_checksum(directory / name)}  {name}\n" for name in names if name != FILE]
    (directory / FILE).write_text("".join(lines))


def check(directory: Path, names: Iterable[str] = METADATA) -> None:
    """Compare files of a data set with their checksums, if it has any.

    Raises:
      ValueError: a file or the list of checksums is damaged, or a listed file is missing.
    """
    if not (directory / FILE).exists():
        return
    try:
        content = input_files.read_file(directory / FILE, _MOST).decode("ascii")
        lines = [_LINE.fullmatch(line) for line in content.removesuffix("\n").split("\n")]
        sums = {line[2]: line[1] for line in lines}
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{directory / FILE} must list checksums; got damaged content: delete it to read the data set unchecked."
        ) from error
    for name in names:
        if name in sums and not (directory / name).is_file():
            raise ValueError(f"{directory} must have all its files; got no {name}: write the data set again.")
        if name in sums and _checksum(directory / name) != sums[name]:
            raise ValueError(
                f"{directory / name} must have its checksum in {FILE}; got another, as one is damaged: write the data "
                f"set again, or delete {FILE} if {name} was changed on purpose."
            )
    if unknown := [name for name in sums if not (directory / name).exists()]:
        raise ValueError(
            f"{directory} must have all files in {FILE}; got no {unknown[0]}: write the data set again, or delete "
            f"{FILE}."
        )


def _checksum(path: Path) -> str:
    with input_files.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
