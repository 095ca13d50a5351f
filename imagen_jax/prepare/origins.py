"""What a data set can be made from: recognised by what lies there, and cut into parts.

A folder of pictures, WebDataset archives, parquet tables, a TFDS data set; or shapes, which are made.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

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
    """An input and what there is to do: `splits` if it has its own, `stamp` to know it again."""

    origin: folder.Folder | webdataset.Archives | parquet.Tables | TfdsSet
    parts: list[Part]
    left_out: list[LeftOut]
    splits: tuple[str, ...] | None
    stamp: str


@dataclasses.dataclass(frozen=True)
class Shapes:
    """The job of making captioned shapes. What is in a part: (split, indices)."""

    part: str

    def examples(self, part: Part) -> Iterator[tuple[str, dict]]:
        split, indices = part.what
        for index in indices:
            example = shapes.example(index, split, self.part)
            yield (
                split,
                {
                    "image": transforms.encode_png(example["image"]),
                    "caption": example["caption"],
                    "claims": json.dumps(example["claims"]),
                },
            )


def shape_parts(nums: dict[str, int]) -> list[Part]:
    """The parts of so many shapes in each split."""
    return [
        Part(f"{split} {start} and on", len(indices), (split, indices))
        for split, num in nums.items()
        for start in range(0, num, SHAPES_PART)
        for indices in [range(start, min(start + SHAPES_PART, num))]
    ]


def survey(
    path: Path, image_key: str | None = None, caption_key: str | None = None, limits: Limits | None = None
) -> Survey:
    """Recognises an input and cuts it into parts; reads no pictures.

    Args:
      path: a folder, or one .tar or .parquet file.
      image_key, caption_key: names of columns, fields, extensions or features, if not the usual ones.
      limits: how much is read of a picture; by default as `Limits` has it.

    Raises:
      ValueError: one line; nothing there, nothing to be recognised or several things, or it lacks
        pictures or captions, as far as that can be seen without reading it all.
    """
    keys = image_key, caption_key, limits or Limits()
    root, files, unseen = path, [], []
    if path.is_file():
        root, files = path.parent, [path.name]
        if not _ending(files, ".tar", ".parquet"):
            fix = "unpack it" if _ending(files, *PACKED) else "give the folder of it"
            raise ValueError(f"--input {path} is a file, neither .tar nor .parquet; {fix}.")
    elif not path.exists() and (named := sources.by_name(str(path))):
        return _survey_tfds(TfdsSet(named, *keys))
    elif not path.is_dir():
        raise ValueError(
            f"The input folder {path} does not exist or is not a folder, nor is there a TFDS data set of that name "
            f"in {sources.tfds_directory()}; `tfds build NAME` makes one there."
        )
    elif sources.is_data_set(path) or list(path.glob("*.*.*/dataset_info.json")):
        return _survey_tfds(TfdsSet(sources.locate(path), *keys))
    else:
        files, unseen = listing.visible_files(path)
    packed = [LeftOut(file, "unknown format", "compressed: unpack it") for file in _ending(files, *PACKED)]
    origin, files = _recognised(path, root, files, keys, unseen)
    planned, left_out = origin.plan(files)
    left_out = packed + left_out
    used = folder.relevant(files) if isinstance(origin, folder.Folder) else files
    return Survey(origin, planned, unseen + left_out, None, listing.stamp(root, used))


def _survey_tfds(origin: TfdsSet) -> Survey:
    planned, splits = origin.plan()
    files = sorted(path.name for path in origin.directory.iterdir() if path.is_file())
    files = [file for file in files if not file.startswith(".")]
    return Survey(origin, planned, [], splits, listing.stamp(origin.directory, files))


def _recognised(path: Path, root: Path, files: list[str], keys: tuple, unseen: list[LeftOut]):
    """The kind of input and its files, of all those that lie there."""
    tars, tables = _ending(files, ".tar"), _ending(files, ".parquet")
    found = listing.pictures_among(files)
    # img2dataset leaves tables about the pictures beside the archives that hold them.
    if tables and (tars or found):
        tables = [file for file in tables if parquet.holds_pictures(root / file, keys[0])]
    kinds = {"pictures": found, ".tar archives": tars, ".parquet tables with pictures": tables}
    several = [kind for kind, those in kinds.items() if those]
    if len(several) > 1:
        examples = ", ".join(kinds[kind][0] for kind in several)
        raise ValueError(
            f"{path} holds {' and '.join(several)} ({examples}); move all but one kind elsewhere."
        )
    if tars:
        return webdataset.Archives(root, *keys), tars
    if tables:
        return parquet.Tables(root, *keys), tables
    if not found:
        if next(path.glob("**/dataset_info.json"), None):
            sources.locate(path)  # says which folder may be meant
        raise ValueError(
            f"{path} has no pictures; looked for {' '.join(listing.PICTURES)}, .tar archives, .parquet "
            f"tables and a TFDS data set{_hint(files, unseen)}."
        )
    return folder.Folder(root, *keys), files


def _hint(files: list[str], unseen: list[LeftOut]) -> str:
    """What may be the reason why nothing was found."""
    if unseen:
        return f"; {unseen[0].file} cannot be read: {unseen[0].detail}"
    if packed := _ending(files, *PACKED):
        return f"; {packed[0]} is compressed, which is not read: unpack it"
    if unread := _ending(files, *listing.UNREAD):
        return f"; {unread[0]} is of a format that is not read: convert it"
    return ""


def _ending(files: list[str], *endings: str) -> list[str]:
    return [file for file in files if file.lower().endswith(endings)]
