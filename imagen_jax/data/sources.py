"""Captioned pictures on disk: TFDS data sets in ArrayRecord files, read without TensorFlow.

A record is {"image": encoded PNG or JPEG bytes, "caption": str} and, where a program can check captions, "claims": a
JSON str. Records are in the order in which they were written. `tfds.builder_from_directory(directory)` reads them too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax import checks
from imagen_jax.checks import Verbatim, require
from imagen_jax.data import checksums
from imagen_jax.data.opening import one_line


@dataclasses.dataclass(eq=False)
class Source:
    """Random access to the records of one split by `len` and `[i]`; picklable and thread-safe.

    Args:
      records: of TFDS, by number.
      name: directory and split, for messages.
      image_key, caption_key, claims_key: names of features; no claims if None.
      files: (path, number of the first record in it, number of records) of the record files that make up the split.
    """

    records: Any
    name: str
    image_key: str
    caption_key: str
    claims_key: str | None
    files: Sequence[tuple[Path, int, int]] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return {"image": bytes, "caption": str} and "claims": str if the data set has them."""
        index = range(len(self))[index]  # negative indices, and IndexError beyond the end
        return self._convert(self.records[index])

    def read(self, indices: Iterable[int]) -> list[dict[str, Any]]:
        """Return the records at several indices, in that order; faster than one by one."""
        indices = [range(len(self))[int(i)] for i in indices]
        return [self._convert(record) for record in self.records.__getitems__(indices)]

    def _convert(self, record: dict) -> dict[str, Any]:
        claims = {"claims": record[self.claims_key].decode("utf-8")} if self.claims_key else {}
        caption = record[self.caption_key].decode("utf-8")
        return {"image": bytes(record[self.image_key]), "caption": caption} | claims


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
    _check_features(directory, builder.info.features, image_key, caption_key)
    chosen = _chosen(directory, builder.info.splits, split)
    check_files(directory, chosen.filepaths)
    import tensorflow_datasets as tfds

    records = builder.as_data_source(split, decoders={image_key: tfds.decode.SkipDecoding()})
    claims = claims_key if claims_key in builder.info.features else None
    files = [(Path(part.filename), part.skip, part.take) for part in chosen.file_instructions]
    return Source(records, f"{directory}, split {split!r}", image_key, caption_key, claims, files)


def _chosen(directory: Path, splits, split: str):
    """Return the TFDS SplitInfo of a split or slice; raise ValueError if it is invalid or has no records."""
    name, of = split.partition("[")[0], Verbatim(f"{split!r} of {directory}")
    have = ", ".join(f"{each.name} ({each.num_examples})" for each in splits.values())
    require(name in splits, "split", f"be one of those in {directory}: {have or 'none'}", split)
    require(name != "all", "split", "not be 'all', which means all splits to TFDS", of, "rename it")
    try:
        chosen = splits[split] if splits[name].num_examples else splits[name]  # TFDS cannot slice nothing
        is_empty = not chosen.num_examples
    except (ValueError, KeyError, AssertionError) as error:
        raise checks.error("split", "be a name or slice of TFDS", of, one_line(error)) from error
    require(not is_empty, "split", "have records", Verbatim(f"{of}, which is empty"))
    return chosen


def check_files(directory: Path, files: Iterable[str | os.PathLike]) -> None:
    """Raise ValueError unless all record files of a split exist."""
    missing = [os.fspath(path) for path in files if not os.path.isfile(path)]
    got = Verbatim(f"no {missing[0]}" if missing else "all")
    require(not missing, directory, "have all its files", got, "make the data set again")


def splits(directory: str | os.PathLike) -> list[str]:
    """Return the names of the splits that have records; raises as `open_source` does."""
    builder = read_builder(locate(directory))
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
        names = Verbatim(", ".join(sorted(path.name for path in versions)))
        raise checks.error(directory, "have one version", names, f"name one, such as {versions[0]}")
    got = Verbatim("no such path" if not directory.exists() else "no dataset_info.json in it")
    fix = f"did you mean {below[0].parent}?" if below else "see imagen-jax prepare"
    raise checks.error(directory, "be a data set", got, fix)


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
    fix = "choose another directory, or delete this one first"
    got = Verbatim("a data set, which is not overwritten")
    require(not is_data_set(directory), directory, "be free", got, fix)
    is_free = not directory.exists() or (directory.is_dir() and not any(directory.iterdir()))
    require(is_free, directory, "be free", Verbatim("one that is not empty"), "choose another directory")


def read_builder(directory: Path):
    """Return the TFDS builder of a directory.

    Raises:
      ValueError: the metadata are damaged, or the records are not ArrayRecord: TFDS itself reads TFRecord only with
        TensorFlow.
    """
    import tensorflow_datasets as tfds

    for name in ("dataset_info.json", "features.json"):
        path = directory / name  # TFDS would block on a pipe
        is_file = not path.exists() or path.is_file()
        require(is_file, path, "be a file", Verbatim("something else"), "write the data set again")
    checksums.check(directory)
    try:
        builder = tfds.builder_from_directory(str(directory))
        for split in builder.info.splits.values():
            _ = split.filepaths  # made by TFDS on access
    except Exception as error:  # broken JSON, protobuf errors, missing features.json
        got = Verbatim(f"damaged ones ({one_line(error)})")
        raise checks.error(directory, "have TFDS metadata", got, "write it again") from error
    found = getattr(builder.info.file_format, "value", None)
    fix = (
        "convert it where TensorFlow is installed, by `tfds convert_format "
        f"--dataset_version_dir={directory} --out_file_format=array_record --out_dir=NEW`"
    )
    require(found == "array_record", directory, "be stored as array_record", Verbatim(found), fix)
    return builder


def feature_kinds(directory: Path, features) -> dict[str, str]:
    """Return the kinds of all features by name, for example {"image": "Image", "captions/text": "Sequence(Text)"}.

    Names are those under which TFDS stores them; a Sequence of dicts is listed as a dict of Sequences.

    Raises:
      ValueError: none is of text.
    """
    import tensorflow_datasets as tfds

    kinds: dict[str, str] = {}

    def walk(feature, name: str, pattern: str) -> None:
        kind = type(feature).__name__
        is_string = kind in ("Tensor", "Scalar") and np.dtype(feature.np_dtype).kind in "OSU"
        if is_string and len(feature.shape) < 2:
            kind = "Sequence(Text)" if feature.shape else "Text"  # as such they are stored
        if isinstance(feature, tfds.features.FeaturesDict):
            for key, value in feature.items():
                walk(value, f"{name}/{key}" if name else key, pattern)
        elif kind in ("Sequence", "Dataset"):
            walk(feature.feature, name, pattern.format(kind + "({})"))
        else:
            kinds[name] = pattern.format(kind)

    walk(features, "", "{}")
    has_text = any("Text" in kind for kind in kinds.values())
    require(has_text, directory, "have a feature of text for captions", Verbatim(told(kinds)))
    return kinds


def told(kinds: dict[str, str]) -> str:
    """Format features for a message: "caption (Text), image (Image)"."""
    return ", ".join(f"{name} ({kind})" for name, kind in sorted(kinds.items())) or "none"


def _check_features(directory, features, image_key: str, caption_key: str) -> None:
    kinds = feature_kinds(directory, features)
    for option, key, kind in (("image", image_key, "Image"), ("caption", caption_key, "Text")):
        have = kinds.get(key, "")
        if have == kind and key in features:
            continue
        if kind in have:  # in a dict or a Sequence
            got = Verbatim(have if key in features else f"{have} in a dict")
            fix = f"prepare it with imagen-jax prepare --input {directory}"
            raise checks.error(f"{key!r} of {directory}", f"be one {kind} at the top", got, fix)
        got = Verbatim(f"{key!r}, it has {told(kinds)}")
        fix = f"name the right one with {option}_key (in training --data.{option}-key)"
        raise checks.error(f"{option}_key", f"be a feature of {kind} in {directory}", got, fix)
