"""Captioned pictures on disk: TFDS data sets in ArrayRecord files, all without TensorFlow.

A record is {"image": encoded PNG or JPEG bytes, "caption": str} and, where captions can be checked
by a program, "claims": a JSON str. Records keep the order they were written in. The directory is a
plain TFDS one: `tfds.builder_from_directory(directory).as_data_source("train")` reads it too.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

RECORDS_PER_SHARD = 16384
_CHUNK = 64  # records handed to TFDS at once: it rewrites its metadata after each call


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
      directory: holds dataset_info.json, features.json and the record files.
      split: "train", "validation", "test" or what the data set has; slices as "train[:100]" work.
      image_key, caption_key: the names of the image and of the text feature.
      claims_key: the name of an optional third feature, JSON text; its absence is no error.

    Raises:
      ValueError: one line; no data set there, or not in ArrayRecord, or a missing or empty split,
        feature or file.
    """
    info = _read_info(Path(directory))
    builder = info["builder"]
    _check_features(directory, builder.info.features, image_key, caption_key)
    if split.split("[")[0] not in builder.info.splits:
        have = ", ".join(f"{s.name} ({s.num_examples})" for s in builder.info.splits.values())
        raise ValueError(f"{directory} has no split {split!r}; it has: {have or 'none'}.")
    splits = builder.info.splits[split]
    if not splits.num_examples:
        raise ValueError(f"Split {split!r} of {directory} is empty.")
    missing = [str(path) for path in splits.filepaths if not Path(path).is_file()]
    if missing:
        raise ValueError(f"{directory} is incomplete: {missing[0]} is missing; write it again.")
    records = builder.as_data_source(split, decoders={image_key: info["skip_decoding"]})
    claims = claims_key if claims_key in builder.info.features else None
    return Source(records, f"{directory}, split {split!r}", image_key, caption_key, claims)


def splits(directory: str | os.PathLike) -> list[str]:
    """The names of the splits that have records; raises as `open_source` does."""
    info = _read_info(Path(directory))["builder"].info
    return [name for name, split in info.splits.items() if split.num_examples]


def captions(source: Source) -> Iterator[str]:
    """The captions in order; no picture is decoded."""
    for start in range(0, len(source), 1024):
        for record in source.read(range(start, min(start + 1024, len(source)))):
            yield record["caption"]


def is_data_set(directory: str | os.PathLike) -> bool:
    """Whether a complete data set lies there; `write` makes it appear only when complete."""
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


def write(
    examples_by_split: dict[str, Iterable[dict]],
    directory: str | os.PathLike,
    *,
    name: str,
    description: str,
    records_per_shard: int = RECORDS_PER_SHARD,
    finish: Callable[[Path], None] | None = None,
) -> dict[str, int]:
    """Writes a TFDS data set: all of it, or nothing.

    The files grow in a sibling directory that takes the final name when everything is written; it
    is removed if anything fails. An existing data set is never touched.

    Args:
      examples_by_split: for each split the records, streamed once, in order of the splits:
        {"image": encoded bytes, "caption": str[, "claims": JSON str]}, all with the same keys.
      directory: the data set's directory; must not exist or be empty.
      name: of the data set, also of its files: lower-case letters, digits, underscores.
      description: a sentence for dataset_info.json.
      records_per_shard: the most records in one file.
      finish: called with the unfinished directory at the end, to add files of one's own.

    Returns:
      The number of records of each split.

    Raises:
      ValueError: one line; the directory is taken, a name is unfit, a split is empty, a record
        lacks something.
    """
    directory = Path(directory)
    check_free(directory)
    for word in (name, *examples_by_split):
        if not re.fullmatch(r"[a-z][a-z0-9_]*", word):
            raise ValueError(
                "Names of data sets and splits are lower-case letters, digits and underscores, "
                f"beginning with a letter; got {word!r}."
            )
    if not examples_by_split:
        raise ValueError("A data set needs at least one split; got none.")
    with _complete_or_nothing(directory) as unfinished:
        counts = _write_splits(examples_by_split, unfinished, name, description, records_per_shard)
        if finish is not None:
            finish(unfinished)
    return counts


@contextlib.contextmanager
def _complete_or_nothing(directory: Path) -> Iterator[Path]:
    """A sibling directory that becomes `directory` at the end, or vanishes on any exception."""
    directory = Path(os.path.abspath(directory))
    directory.parent.mkdir(parents=True, exist_ok=True)
    unfinished = directory.with_name(f".{directory.name}.unfinished-{os.getpid()}")
    unfinished.mkdir()
    try:
        yield unfinished
        os.rename(unfinished, directory)  # fails if somebody else has filled it meanwhile
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write_splits(examples_by_split, directory, name, description, records_per_shard):
    import tensorflow_datasets as tfds

    counts, writer = {}, None
    for split, examples in examples_by_split.items():
        examples = iter(examples)
        first = next(examples, None)
        if first is None:
            raise ValueError(f"Split {split!r} would be empty; leave it out or give it records.")
        if writer is None:
            keys = set(first)
            info = tfds.core.DatasetInfo(
                builder=tfds.core.DatasetIdentity(
                    name=name, version="1.0.0", data_dir=str(directory), module_name=""
                ),
                features=_features(tfds, keys),
                description=description,
            )
            writer = tfds.core.SequentialWriter(
                info, max_examples_per_shard=records_per_shard, file_format="array_record"
            )
        writer.initialize_splits([split])
        counts[split] = 0
        records = _checked(itertools.chain([first], examples), split, keys)
        while chunk := list(itertools.islice(records, _CHUNK)):
            writer.add_examples({split: chunk})
            counts[split] += len(chunk)
        writer.close_splits([split])
    return counts


def _features(tfds, keys: set[str]):
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "caption": tfds.features.Text(),
    }
    if "claims" in keys:
        features["claims"] = tfds.features.Text()
    return tfds.features.FeaturesDict(features)


def _checked(examples: Iterable[dict], split: str, keys: set[str]) -> Iterator[dict]:
    for i, example in enumerate(examples):
        where = f"Record {i} of split {split!r}"
        if set(example) != keys or keys - {"claims"} != {"image", "caption"}:
            raise ValueError(
                f"{where} has the keys {sorted(example)}; expected image and caption, and claims "
                "in all records or in none."
            )
        if not isinstance(example["image"], bytes) or not example["image"]:
            raise ValueError(f"{where}: image must be encoded bytes, got {type(example['image'])}.")
        for key in keys - {"image"}:
            if not isinstance(example[key], str) or not example[key].strip():
                raise ValueError(f"{where}: {key} must be text, got {example[key]!r}.")
        yield example


def _read_info(directory: Path) -> dict[str, Any]:
    """The TFDS builder of a directory, checked as far as its metadata goes."""
    if not is_data_set(directory):
        what = "does not exist" if not directory.exists() else "has no dataset_info.json"
        below = sorted(directory.glob("**/dataset_info.json"))[:3] if directory.is_dir() else []
        hint = f" Did you mean {below[0].parent}?" if below else " See scripts/prepare_data.py."
        raise ValueError(f"No data set at {directory}: it {what}.{hint}")
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(str(directory))
    except Exception as error:  # broken JSON, protobuf errors, missing features.json
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{directory} has damaged TFDS metadata: {reason}") from error
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        raise ValueError(
            f"{directory} is stored as {getattr(file_format, 'value', None)}; random access needs "
            'array_record: prepare it again with file_format="array_record".'
        )
    return {"builder": builder, "skip_decoding": tfds.decode.SkipDecoding()}


def _check_features(directory, features, image_key: str, caption_key: str) -> None:
    for key, kind in ((image_key, "Image"), (caption_key, "Text")):
        if key not in features or type(features[key]).__name__ != kind:
            have = ", ".join(f"{k} ({type(v).__name__})" for k, v in features.items())
            raise ValueError(
                f"{directory} has no {kind} feature {key!r}; it has: {have}. "
                "Name the right ones with image_key and caption_key."
            )
