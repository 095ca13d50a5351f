"""Captioned pictures on disk: TFDS data sets in ArrayRecord files, all without TensorFlow.

A record is {"image": encoded PNG or JPEG bytes, "caption": str} and, where captions can be checked
by a program, "claims": a JSON str. Records keep the order they were written in. The directory is a
plain TFDS one: `tfds.builder_from_directory(directory).as_data_source("train")` reads it too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data import checksums


class Source:
    """Random access to the records of one split; `len`, `[i]`, picklable, safe from threads."""

    def __init__(self, records, name: str, image_key: str, caption_key: str, claims_key: str | None):
        self.name = name  # for messages: directory and split
        self._records = records
        self._image_key, self._caption_key, self._claims_key = image_key, caption_key, claims_key

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """{"image": bytes, "caption": str} and "claims": str if the data set has them."""
        index = range(len(self))[index]  # negative indices, and IndexError beyond the end
        return self._convert(self._records[index])

    def read(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """The records at several indices, in that order; faster than one by one."""
        indices = [range(len(self))[int(i)] for i in indices]
        return [self._convert(record) for record in self._records.__getitems__(indices)]

    def _convert(self, record: dict) -> dict[str, Any]:
        example = {
            "image": bytes(record[self._image_key]),
            "caption": record[self._caption_key].decode("utf-8"),
        }
        if self._claims_key:
            example["claims"] = record[self._claims_key].decode("utf-8")
        return example


def open_source(
    directory: str | os.PathLike,
    split: str = "train",
    *,
    image_key: str = "image",
    caption_key: str = "caption",
    claims_key: str = "claims",
) -> Source:
    """Opens one split of a TFDS data set that is stored as ArrayRecord.

    Args:
      directory: holds dataset_info.json, features.json and the record files, or has one
        sub-directory that does, called after a version, such as 1.0.0.
      split: "train", "validation", "test" or what the data set has; slices as "train[:100]" work.
      image_key, caption_key: the names of the image and of the text feature.
      claims_key: the name of an optional third feature, JSON text; its absence is no error.

    Raises:
      ValueError: one line; no data set there, or not in ArrayRecord, or a missing or empty split,
        feature or file.
    """
    directory = locate(directory)
    builder = read_builder(directory)
    check_format(directory, builder)
    _check_features(directory, builder.info.features, image_key, caption_key)
    if split.split("[")[0] not in builder.info.splits:
        have = ", ".join(f"{s.name} ({s.num_examples})" for s in builder.info.splits.values())
        raise ValueError(f"{directory} has no split {split!r}; it has: {have or 'none'}.")
    chosen = _splits(directory, builder.info, split)
    missing = [str(path) for path in chosen.filepaths if not Path(path).is_file()]
    if missing:
        raise ValueError(f"{directory} is incomplete: {missing[0]} is missing; write it again.")
    import tensorflow_datasets as tfds

    records = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
    claims = claims_key if claims_key in builder.info.features else None
    return Source(records, f"{directory}, split {split!r}", image_key, caption_key, claims)


def _splits(directory: Path, info, split: str):
    """What TFDS knows of a split or slice; raises ValueError if it cannot be read or has no records."""
    if split.split("[")[0] == "all":
        raise ValueError(
            f"Split 'all' of {directory} cannot be read: to TFDS that word means all splits. Rename it."
        )
    try:
        whole = info.splits[split.split("[")[0]]
        chosen = info.splits[split] if whole.num_examples else whole  # TFDS cannot slice nothing
        empty = not chosen.num_examples
    except (ValueError, KeyError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"Split {split!r} of {directory} cannot be read: {reason}") from error
    if empty:
        raise ValueError(f"Split {split!r} of {directory} is empty.")
    return chosen


def splits(directory: str | os.PathLike) -> list[str]:
    """The names of the splits that have records; raises as `open_source` does."""
    directory = locate(directory)
    builder = read_builder(directory)
    check_format(directory, builder)
    return [name for name, split in builder.info.splits.items() if split.num_examples]


def captions(source: Source) -> Iterator[str]:
    """The captions in order, but of records that cannot be read; no picture is decoded."""
    for start in range(0, len(source), 1024):
        numbers = range(start, min(start + 1024, len(source)))
        try:
            yield from [record["caption"] for record in source.read(numbers)]
        except Exception:  # whatever the format raises for one damaged record; the others can be read alone
            for number in numbers:
                with contextlib.suppress(Exception):
                    yield source[number]["caption"]


def locate(directory: str | os.PathLike) -> Path:
    """The directory that holds dataset_info.json: this one, or its only version's, such as 1.0.0.

    Raises:
      ValueError: one line; there is none, or there are several versions.
    """
    directory = Path(directory)
    if is_data_set(directory):
        return directory
    below = sorted(directory.glob("**/dataset_info.json"))[:3] if directory.is_dir() else []
    versions = [path.parent for path in directory.glob("*.*.*/dataset_info.json")]
    if len(versions) == 1:
        return versions[0]
    if versions:
        names = ", ".join(sorted(path.name for path in versions))
        raise ValueError(f"{directory} has several versions, {names}; name one: {versions[0]}.")
    what = "does not exist" if not directory.exists() else "has no dataset_info.json"
    hint = f" Did you mean {below[0].parent}?" if below else " See scripts/prepare_data.py."
    raise ValueError(f"No data set at {directory}: it {what}.{hint}")


def by_name(name: str) -> Path | None:
    """Where a TFDS data set lies that was made on this machine, as "coco_captions/2014:1.1.0"; None if it was not."""
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        found = read_only_builder.builder_from_files(name, data_dir=tfds_directory())
    except (registered.DatasetNotFoundError, ValueError):  # the latter for what cannot be a name
        return None
    return Path(found.data_dir)


def tfds_directory() -> str:
    """Where TFDS keeps data sets: TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    import tensorflow_datasets as tfds

    return os.environ.get("TFDS_DATA_DIR", str(tfds.core.constants.DATA_DIR))


def is_data_set(directory: str | os.PathLike) -> bool:
    """Whether a directory holds a complete data set."""
    return (Path(directory) / "dataset_info.json").is_file()


def check_free(directory: str | os.PathLike) -> None:
    """Raises ValueError unless a new data set can go there: nothing, or an empty directory."""
    directory = Path(directory)
    if is_data_set(directory):
        raise ValueError(
            f"{directory} already holds a data set and is not overwritten; choose another "
            "directory, or delete this one first."
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} already exists and is not empty; choose another directory.")


def read_builder(directory: Path):
    """The TFDS builder of a directory, in whatever format its records are.

    Raises:
      ValueError: one line; its metadata are damaged.
    """
    import tensorflow_datasets as tfds

    for name in ("dataset_info.json", "features.json"):
        if (directory / name).exists() and not (directory / name).is_file():  # TFDS would wait for a pipe
            raise ValueError(f"{directory / name} must be a file; it is not: write the data set again.")
    checksums.check(directory)
    try:
        builder = tfds.builder_from_directory(str(directory))
        for split in builder.info.splits.values():
            _ = split.filepaths  # TFDS makes their names only when they are asked for
        return builder
    except Exception as error:  # broken JSON, protobuf errors, missing features.json
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{directory} has damaged TFDS metadata: {reason}") from error


def feature_kinds(features) -> dict[str, str]:
    """All features of a data set by name, those in dicts as "captions/text", and what they are.

    For example {"image": "Image", "captions/text": "Sequence(Text)"}: the names are those under
    which TFDS stores them, and a Sequence of dicts is told as a dict of Sequences.
    """
    import tensorflow_datasets as tfds

    kinds: dict[str, str] = {}

    def walk(feature, name: str, pattern: str) -> None:
        kind = type(feature).__name__
        if (
            kind in ("Tensor", "Scalar")
            and np.dtype(feature.np_dtype).kind in "OSU"
            and len(feature.shape) < 2
        ):
            kind = "Sequence(Text)" if feature.shape else "Text"  # as such they are stored
        if isinstance(feature, tfds.features.FeaturesDict):
            for key, value in feature.items():
                walk(value, f"{name}/{key}" if name else key, pattern)
        elif kind in ("Sequence", "Dataset"):
            walk(feature.feature, name, pattern.format(kind + "({})"))
        else:
            kinds[name] = pattern.format(kind)

    walk(features, "", "{}")
    return kinds


def told(kinds: dict[str, str]) -> str:
    """For example "caption (Text), image (Image)"."""
    return ", ".join(f"{name} ({kind})" for name, kind in sorted(kinds.items())) or "none"


def check_format(directory: Path, builder) -> None:
    """Raises ValueError unless the records are ArrayRecord. TFDS itself reads TFRecord only with TensorFlow."""
    file_format = getattr(builder.info.file_format, "value", None)
    if file_format != "array_record":
        raise ValueError(
            f"{directory} must be stored as array_record; got {file_format}: convert it where TensorFlow is installed, "
            f"by `tfds convert_format --dataset_version_dir={directory} --out_file_format=array_record --out_dir=NEW`."
        )


def _check_features(directory, features, image_key: str, caption_key: str) -> None:
    kinds = feature_kinds(features)
    if not any("Text" in kind for kind in kinds.values()):
        raise ValueError(
            f"{directory} has no text at all, so no captions to train on; its features are: {told(kinds)}."
        )
    for key, kind in ((image_key, "Image"), (caption_key, "Text")):
        if kinds.get(key) == kind and key in features:
            continue
        if kinds.get(key) == kind:
            raise ValueError(
                f"{key!r} of {directory} lies in a dict: prepare it with scripts/prepare_data.py --input "
                f"{directory}."
            )
        if f"{kind})" in kinds.get(key, ""):
            raise ValueError(
                f"{key!r} of {directory} is {kinds[key]}, where each record needs one {kind}: "
                f"prepare it with scripts/prepare_data.py --input {directory}."
            )
        raise ValueError(
            f"{directory} has no {kind} feature {key!r}; it has: {told(kinds)}. "
            "Name the right ones with image_key and caption_key (in training --data.image-key and "
            "--data.caption-key)."
        )
