"""Captioned pictures on disk: TFDS data sets in ArrayRecord files, read without TensorFlow.

A record is {"image": encoded PNG or JPEG bytes, "caption": str} and, where a program can check captions, "claims": a
JSON str. Records are in the order in which they were written. `tfds.builder_from_directory(directory)` reads them too.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax.data import checksums


class Source:
    """Random access to the records of one split by `len` and `[i]`; picklable and thread-safe.

    Attributes:
      name: directory and split, for messages.
      caption_key: name of the text feature.
      files: (path, number of the first record in it, number of records) of the record files that make up the split.
    """

    def __init__(
        self,
        records,
        name: str,
        image_key: str,
        caption_key: str,
        claims_key: str | None,
        files: Sequence[tuple[Path, int, int]] = (),
    ):
        self.name, self.caption_key, self.files = name, caption_key, tuple(files)
        self._records = records
        self._image_key, self._claims_key = image_key, claims_key

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return {"image": bytes, "caption": str} and "claims": str if the data set has them."""
        index = range(len(self))[index]  # negative indices, and IndexError beyond the end
        return self._convert(self._records[index])

    def read(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """Return the records at several indices, in that order; faster than one by one."""
        indices = [range(len(self))[int(i)] for i in indices]
        return [self._convert(record) for record in self._records.__getitems__(indices)]

    def _convert(self, record: dict) -> dict[str, Any]:
        example = {
            "image": bytes(record[self._image_key]),
            "caption": record[self.caption_key].decode("utf-8"),
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
    """Open one split of a TFDS data set in ArrayRecord files.

    Args:
      directory: holds dataset_info.json, features.json and the record files, or one sub-directory that does, named
        after a version, such as 1.0.0.
      split: "train", "validation", "test" or another split of the data set, or a slice such as "train[:100]".
      image_key, caption_key: names of the image and the text feature.
      claims_key: name of an optional third feature of JSON text.

    Raises:
      ValueError: there is no data set, it is not in ArrayRecord, or a split, feature or file is missing or empty.
    """
    directory = locate(directory)
    builder = read_builder(directory)
    check_format(directory, builder)
    _check_features(directory, builder.info.features, image_key, caption_key)
    if split.split("[")[0] not in builder.info.splits:
        have = ", ".join(f"{s.name} ({s.num_examples})" for s in builder.info.splits.values())
        raise ValueError(f"split must be one of those in {directory}: {have or 'none'}; got {split!r}.")
    chosen = _splits(directory, builder.info, split)
    missing = [str(path) for path in chosen.filepaths if not Path(path).is_file()]
    if missing:
        raise ValueError(
            f"{directory} must have all its files; got no {missing[0]}: write the data set again."
        )
    import tensorflow_datasets as tfds

    records = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
    claims = claims_key if claims_key in builder.info.features else None
    files = [(Path(part.filename), part.skip, part.take) for part in chosen.file_instructions]
    return Source(records, f"{directory}, split {split!r}", image_key, caption_key, claims, files)


def _splits(directory: Path, info, split: str):
    """Return the TFDS SplitInfo of a split or slice; raise ValueError if it is invalid or has no records."""
    if split.split("[")[0] == "all":
        raise ValueError(
            f"split must not be 'all', which means all splits to TFDS; got it for {directory}: rename it."
        )
    try:
        whole = info.splits[split.split("[")[0]]
        chosen = info.splits[split] if whole.num_examples else whole  # TFDS cannot slice nothing
        empty = not chosen.num_examples
    except (ValueError, KeyError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"split must be a name or slice of TFDS; got {split!r} of {directory}: {reason}."
        ) from error
    if empty:
        raise ValueError(f"split must have records; got {split!r} of {directory}, which is empty.")
    return chosen


def splits(directory: str | os.PathLike) -> list[str]:
    """Return the names of the splits that have records; raises as `open_source` does."""
    directory = locate(directory)
    builder = read_builder(directory)
    check_format(directory, builder)
    return [name for name, split in builder.info.splits.items() if split.num_examples]


def captions(source: Source) -> Iterator[str]:
    """Yield the captions in order, except those of records that cannot be read, without decoding pictures."""
    for _, found in numbered_captions(source, range(len(source))):
        yield from found


def numbered_captions(
    source: Source, numbers: Sequence[int], size: int = 1024
) -> Iterator[tuple[list[int], list[str]]]:
    """Yield the numbers and captions of some records, `size` at a time, except those that cannot be read."""
    for start in range(0, len(numbers), size):
        part = [int(number) for number in numbers[start : start + size]]
        try:
            yield part, [record["caption"] for record in source.read(part)]
        except Exception:  # of any kind for one damaged record; the others can be read one by one
            found = {}
            for number in part:
                with contextlib.suppress(Exception):
                    found[number] = source[number]["caption"]
            yield list(found), list(found.values())


def locate(directory: str | os.PathLike) -> Path:
    """Return the directory that holds dataset_info.json: this one, or that of its only version, such as 1.0.0.

    Raises:
      ValueError: there is none, or there are several versions.
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
        raise ValueError(f"{directory} must have one version; got {names}: name one, such as {versions[0]}.")
    got = "no such path" if not directory.exists() else "no dataset_info.json in it"
    fix = f"did you mean {below[0].parent}?" if below else "see imagen-jax prepare"
    raise ValueError(f"{directory} must be a data set; got {got}: {fix}.")


def by_name(name: str) -> Path | None:
    """Return the directory of a local TFDS data set such as "coco_captions/2014:1.1.0"; None if there is none."""
    from tensorflow_datasets.core import read_only_builder, registered

    try:
        found = read_only_builder.builder_from_files(name, data_dir=tfds_directory())
    except (registered.DatasetNotFoundError, ValueError):  # ValueError: not a valid name
        return None
    return Path(found.data_dir)


def tfds_directory() -> str:
    """Return the directory of TFDS data sets: TFDS_DATA_DIR, or ~/tensorflow_datasets."""
    import tensorflow_datasets as tfds

    return os.environ.get("TFDS_DATA_DIR", str(tfds.core.constants.DATA_DIR))


def is_data_set(directory: str | os.PathLike) -> bool:
    """Whether a directory holds a complete data set."""
    return (Path(directory) / "dataset_info.json").is_file()


def check_free(directory: str | os.PathLike) -> None:
    """Raise ValueError unless the directory is empty or does not exist."""
    directory = Path(directory)
    if is_data_set(directory):
        raise ValueError(
            f"{directory} must be free; got a data set, which is not overwritten: choose another directory, or delete "
            "this one first."
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ValueError(f"{directory} must be free; got one that is not empty: choose another directory.")


def read_builder(directory: Path):
    """Return the TFDS builder of a directory with records in any format; raise ValueError if metadata are damaged."""
    import tensorflow_datasets as tfds

    for name in ("dataset_info.json", "features.json"):
        if (directory / name).exists() and not (directory / name).is_file():  # TFDS would block on a pipe
            raise ValueError(
                f"{directory / name} must be a file; got something else: write the data set again."
            )
    checksums.check(directory)
    try:
        builder = tfds.builder_from_directory(str(directory))
        for split in builder.info.splits.values():
            _ = split.filepaths  # made by TFDS on access
        return builder
    except Exception as error:  # broken JSON, protobuf errors, missing features.json
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{directory} must have TFDS metadata; got damaged ones ({reason}): write it again."
        ) from error


def feature_kinds(features) -> dict[str, str]:
    """Return the kinds of all features by name, for example {"image": "Image", "captions/text": "Sequence(Text)"}.

    Names are those under which TFDS stores them; a Sequence of dicts is listed as a dict of Sequences.
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
    """Format features for a message: "caption (Text), image (Image)"."""
    return ", ".join(f"{name} ({kind})" for name, kind in sorted(kinds.items())) or "none"


def check_format(directory: Path, builder) -> None:
    """Raise ValueError unless the records are ArrayRecord. TFDS itself reads TFRecord only with TensorFlow."""
    file_format = getattr(builder.info.file_format, "value", None)
    if file_format != "array_record":
        raise ValueError(
            f"{directory} must be stored as array_record; got {file_format}: convert it where TensorFlow is installed, "
            f"by `tfds convert_format --dataset_version_dir={directory} --out_file_format=array_record --out_dir=NEW`."
        )


def _check_features(directory, features, image_key: str, caption_key: str) -> None:
    kinds = feature_kinds(features)
    if not any("Text" in kind for kind in kinds.values()):
        raise ValueError(f"{directory} must have a feature of text for captions; got {told(kinds)}.")
    for option, key, kind in (("image", image_key, "Image"), ("caption", caption_key, "Text")):
        have = kinds.get(key, "")
        if have == kind and key in features:
            continue
        if kind in have:  # in a dict or a Sequence
            where = "" if key in features else " in a dict"
            raise ValueError(
                f"{key!r} of {directory} must be one {kind} at the top; got {have}{where}: prepare it with "
                f"imagen-jax prepare --input {directory}."
            )
        raise ValueError(
            f"{option}_key must be a feature of {kind} in {directory}; got {key!r}, it has {told(kinds)}: name the "
            f"right one with {option}_key (in training --data.{option}-key)."
        )
