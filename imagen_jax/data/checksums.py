"""Checksums of the metadata of a data set in SHA256SUMS, in the format of `sha256sum --check`.

Record files are not listed: ArrayRecord stores checksums in them and verifies those of each record that it reads.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from imagen_jax import checks
from imagen_jax.checks import Verbatim, require
from imagen_jax.storage import input_files

FILE = "SHA256SUMS"
METADATA = ("dataset_info.json", "features.json", "prepared.json")  # verified when a data set is opened
_LINE = re.compile(r"([0-9a-f]{64})  ([^/\n]+)")
_MOST = 2**28  # bytes of a metadata file


def write(directory: Path) -> None:
    """Store the checksums of all files in a directory except its record files."""
    files = [path for path in sorted(directory.iterdir()) if path.is_file() and path.name != FILE]
    lines = [f"{_checksum(path)}  {path.name}\n" for path in files if ".array_record-" not in path.name]
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
        fix, got = "delete it to read the data set unchecked", Verbatim("damaged content")
        raise checks.error(directory / FILE, "list checksums", got, fix) from error
    for name in sums:
        fix, got = f"write the data set again, or delete {FILE}", Verbatim(f"no {name}")
        require((directory / name).is_file(), directory, f"have all files in {FILE}", got, fix)
    for name in sums.keys() & set(names):
        fix = f"write the data set again, or delete {FILE} if {name} was changed on purpose"
        got, is_same = Verbatim("another, as one is damaged"), _checksum(directory / name) == sums[name]
        require(is_same, directory / name, f"have its checksum in {FILE}", got, fix)


def _checksum(path: Path) -> str:
    with input_files.open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
