"""Captioned pictures in a TFDS data set, as ArrayRecord or TFRecord files, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.data import shards, sources
from imagen_jax.prepare import crc32c, listing, text_files
from imagen_jax.prepare.captions import CAPTIONS, columns
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.parts import Part
from imagen_jax.prepare.pictures import Found
from imagen_jax.prepare.quarantine import LeftOut, Unusable
from imagen_jax.storage import input_files

_TEXTS = ("Text", "Sequence(Text)")
_NAMES = ("caption", "captions/text", "captions", "text", "captions/caption")  # looked for in this order


@dataclasses.dataclass(frozen=True)
class TfdsSet:
    """A TFDS data set; the keys name its features. Its splits are kept.

    What is in a part: (split, file, its format, number of records, image feature, caption feature).
    """

    directory: Path
    image_key: str | None = None
    caption_key: str | None = None
    limits: Limits = Limits()

    def plan(self) -> tuple[list[Part], tuple[str, ...]]:
        """A part for each file, and the names of the splits that have records.

        Raises:
          ValueError: damaged metadata, another format, a feature or file is missing.
        """
        builder = sources.read_builder(self.directory)
        info = builder.info
        kind = getattr(info.file_format, "value", None)
        if kind not in ("array_record", "tfrecord"):
            raise ValueError(f"{self.directory} is stored as {kind}; expected array_record or tfrecord.")
        image, caption = self._features(sources.feature_kinds(info.features))
        splits = tuple(name for name, split in info.splits.items() if split.num_examples)
        if not splits:
            raise ValueError(f"{self.directory} has no records in any split.")
        parts = []
        for split in splits:
            files, lengths = info.splits[split].filepaths, info.splits[split].shard_lengths
            for file, length in zip(map(os.fspath, files), lengths, strict=True):
                if not os.path.exists(file):
                    raise ValueError(f"{self.directory} is incomplete: {file} is missing.")
                what = (split, file, kind, length, image, caption)
                parts.append(Part(os.path.basename(file), length, what))
        return parts, splits

    def _features(self, kinds: dict[str, str]) -> tuple[str, str]:
        """The names of the features of pictures and of captions."""
        images = [name for name, kind in kinds.items() if kind == "Image"]
        texts = [name for name, kind in kinds.items() if kind in _TEXTS]
        if not any("Text" in kind for kind in kinds.values()):
            raise ValueError(
                f"{self.directory} has no text at all, so no captions; its features are: {sources.told(kinds)}."
            )
        likely = columns(images, (self.image_key or "image",))
        if not likely and not self.image_key and len(images) == 1:
            likely = images
        image = likely[0] if likely else self.image_key or "image"
        caption = next(iter(columns(texts, (self.caption_key,) if self.caption_key else _NAMES)), None)
        caption = caption or self.caption_key or CAPTIONS[0]
        for option, key, fitting, what in (
            ("--image-key", image, images, "Image"),
            ("--caption-key", caption, texts, "Text"),
        ):
            if key not in fitting:
                raise ValueError(
                    f"{self.directory} has no {what} feature {key!r}; it has: {sources.told(kinds)}. "
                    f"Name the right one with {option}."
                )
        return image, caption

    def read(self, part: Part) -> Iterator[Found | LeftOut]:
        split, file, kind, length, image, caption = part.what
        most = self.limits.image_bytes + text_files.MAX_BYTES
        read = functools.partial(tfrecords, most=most) if kind == "tfrecord" else shards.read_sound
        done = 0
        try:
            input_files.open_file(Path(file)).close()  # refuses what is no file
            for record in read(Path(file)):
                where = f"{part.name}:{done}"
                try:
                    found = _found(record, where, split, image, caption)
                    self.limits.check_image(len(found.image))
                except Unusable as error:
                    found = error.of(where)
                yield found
                done += 1
        except (OSError, input_files.NoFileError) as error:
            yield listing.unreadable(error, f"{part.name}:{done}")
            return
        except (RuntimeError, ValueError, _DamagedError) as error:
            yield LeftOut(f"{part.name}:{done}", "damaged archive", f"the rest is not read: {error}")
            return
        if done != length:
            detail = f"{length} records are promised, {done} are there"
            yield LeftOut(part.name, "damaged archive", detail)


class _DamagedError(Exception):
    pass


def _found(record: bytes | Exception, where: str, split: str, image: str, caption: str) -> Found:
    if isinstance(record, Unusable):
        raise record
    if isinstance(record, Exception):
        raise Unusable("damaged archive", f"this record is not read: {record}")
    values = _parsed(record)
    pictures = values[image].bytes_list.value if image in values else ()
    if not pictures:
        raise Unusable("no picture", f"no {image} in this record")
    texts = values[caption].bytes_list.value if caption in values else ()
    try:
        captions = tuple(text.decode("utf-8") for text in texts)
    except UnicodeDecodeError as error:
        raise Unusable("unreadable caption", f"not UTF-8: {error}") from error
    return Found(where, pictures[0], captions, split)


def _parsed(record: bytes):
    """The features of a tf.train.Example by their names, those in dicts as "captions/text"."""
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        return tf_example_pb2.Example.FromString(record).features.feature
    except DecodeError as error:
        raise Unusable("damaged archive", f"not a tf.train.Example: {error}") from error


def tfrecords(path: Path, most: int = 2**62) -> Iterator[bytes | Exception]:
    """The records of a TFRecord file: length (8 bytes), its checksum (4), data, its checksum (4). In the place of one
    that is damaged, or of more than `most` bytes, why it is not read.

    Raises _DamagedError where the file is cut off or a length is wrong.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        while head := file.read(12):
            if len(head) < 12 or crc32c.masked(head[:8]) != struct.unpack("<I", head[8:])[0]:
                raise _DamagedError("the length of a record is damaged")
            (length,) = struct.unpack("<Q", head[:8])
            if file.tell() + length + 4 > size:
                raise _DamagedError("a record is cut off")
            if length > most:
                yield Unusable("too large", f"a record of {length} bytes, more than {most}")
                file.seek(length + 4, os.SEEK_CUR)
                continue
            record = file.read(length)
            is_sound = crc32c.masked(record) == struct.unpack("<I", file.read(4))[0]
            yield record if is_sound else _DamagedError("it does not have its checksum")
