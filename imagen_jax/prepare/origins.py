"""Inputs of data sets: recognised by their files, and cut into parts.

A folder of pictures, WebDataset archives, parquet tables or a TFDS data set; or generated shapes.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.checks import Verbatim, require
from imagen_jax.data import sources, transforms
from imagen_jax.prepare import folder, listing, parquet, shapes, webdataset
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.parts import Part
from imagen_jax.prepare.pictures import Pictures as Pictures
from imagen_jax.prepare.quarantine import LeftOut
from imagen_jax.prepare.tfds_set import TfdsSet

SHAPES_PART = 1024  # pictures
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip", ".7z", ".rar")


@dataclasses.dataclass(frozen=True)
class Survey:
    """An input, its parts and its own splits, if any; `stamp` changes when its files do."""

    origin: folder.Folder | webdataset.Archives | parquet.Tables | TfdsSet
    parts: list[Part]
    left_out: list[LeftOut]
    splits: tuple[str, ...] | None
    stamp: str


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The job of generating captioned shapes. Contents of a part: (split, indices)."""

    part: str

    def examples(self, part: Part) -> Iterator[tuple[str, dict]]:
        split, indices = part.what
        for index in indices:
            example = shapes.example(index, split, self.part)
            image, claims = transforms.encode_png(example["image"]), json.dumps(example["claims"])
            yield split, {"image": image, "caption": example["caption"], "claims": claims}


def shape_parts(nums: dict[str, int]) -> list[Part]:
    """Return the parts of a data set with these numbers of shapes in each split."""
    return [
        Part(f"{split} {start} and on", len(indices), (split, indices))
        for split, num in nums.items()
        for start in range(0, num, SHAPES_PART)
        for indices in [range(start, min(start + SHAPES_PART, num))]
    ]


def survey(
    path: Path, image_key: str | None = None, caption_key: str | None = None, limits: Limits | None = None
) -> Survey:
    """Recognise an input and cut it into parts, without reading pictures.

    Args:
      path: a folder, one .tar or .parquet file, or the name of a TFDS data set.
      image_key, caption_key: names of columns, fields, extensions or features, if not the usual ones.
      limits: how much is read of a picture; by default `Limits()`.

    Raises:
      ValueError: the input does not exist, is of no kind or several kinds, or lacks pictures or captions, as far as can
        be determined without reading all of it.
    """
    keys = image_key, caption_key, limits or Limits()
    root, unseen = path, []
    directory = None if path.exists() else sources.by_name(str(path))
    if sources.is_data_set(path) or list(path.glob("*.*.*/dataset_info.json")):
        directory = sources.locate(path)
    if directory is not None:
        return _survey_tfds(TfdsSet(directory, *keys))
    if path.is_file():
        root, files = path.parent, [path.name]
        fix = "unpack it" if _ending(files, *PACKED) else "give the folder of it"
        is_one = bool(_ending(files, ".tar", ".parquet"))
        require(is_one, "--input", "be a folder or a .tar or .parquet file", Verbatim(path), fix)
    else:
        rule = f"be a folder, or the name of a TFDS data set in {sources.tfds_directory()}"
        fix = "check the path (`tfds build NAME` makes a TFDS data set)"
        require(path.is_dir(), "--input", rule, Verbatim(path), fix)
        files, unseen = listing.visible_files(path)
    packed = [LeftOut(file, "unknown format", "compressed: unpack it") for file in _ending(files, *PACKED)]
    origin, files = _recognised(path, root, files, keys, unseen)
    planned, left_out = origin.plan(files)
    used = folder.relevant(files) if isinstance(origin, folder.Folder) else files
    return Survey(origin, planned, unseen + packed + left_out, None, listing.stamp(root, used))


def _survey_tfds(origin: TfdsSet) -> Survey:
    planned, splits = origin.plan()
    files = sorted(path.name for path in origin.directory.iterdir() if path.is_file())
    files = [file for file in files if not file.startswith(".")]
    return Survey(origin, planned, [], splits, listing.stamp(origin.directory, files))


def _recognised(path: Path, root: Path, files: list[str], keys: tuple, unseen: list[LeftOut]):
    """Return the origin and its files among all those in the input."""
    tars, tables = _ending(files, ".tar"), _ending(files, ".parquet")
    found = listing.pictures_among(files)
    # img2dataset writes tables without pictures beside its archives.
    if tables and (tars or found):
        tables = [file for file in tables if parquet.holds_pictures(root / file, keys[0])]
    kinds = {"pictures": found, ".tar archives": tars, ".parquet tables with pictures": tables}
    several = [kind for kind, those in kinds.items() if those]
    examples = ", ".join(kinds[kind][0] for kind in several)
    got = Verbatim(f"{' and '.join(several)} ({examples})")
    require(len(several) < 2, path, "hold one kind of input", got, "move all but one elsewhere")
    if tars:
        return webdataset.Archives(root, *keys), tars
    if tables:
        return parquet.Tables(root, *keys), tables
    if not found and next(path.glob("**/dataset_info.json"), None):
        sources.locate(path)  # raises an error with the likely folder
    rule = f"have pictures ({' '.join(listing.PICTURES)}), .tar archives, .parquet tables or a TFDS data set"
    require(bool(found), path, rule, Verbatim("none"), _hint(files, unseen))
    return folder.Folder(root, *keys), files


def _hint(files: list[str], unseen: list[LeftOut]) -> str:
    """Return a likely reason why nothing was found."""
    if unseen:
        return f"{unseen[0].file} cannot be read ({unseen[0].detail})"
    if packed := _ending(files, *PACKED):
        return f"{packed[0]} is compressed, which is not read, unpack it"
    if unread := _ending(files, *listing.UNREAD):
        return f"{unread[0]} is of a format that is not read, convert it"
    return ""


def _ending(files: list[str], *endings: str) -> list[str]:
    return [file for file in files if file.lower().endswith(endings)]
