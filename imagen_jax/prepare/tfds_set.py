"""Captioned pictures of a TFDS data set in ArrayRecord files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.checks import Verbatim, require
from imagen_jax.data import shards, sources
from imagen_jax.prepare import listing
from imagen_jax.prepare.captions import columns
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.parts import Part
from imagen_jax.prepare.pictures import Found
from imagen_jax.prepare.quarantine import LeftOut, Unusable
from imagen_jax.storage import input_files

_NAMES = ("caption", "captions/text", "captions", "text", "captions/caption")  # the first that exists is used


@dataclasses.dataclass(frozen=True)
class TfdsSet:
    """A TFDS data set, whose splits are kept. The keys, if given, are the names of its features.

    Contents of a part: (split, file, number of records, image feature, caption feature).
    """

    directory: Path
    image_key: str | None = None
    caption_key: str | None = None
    limits: Limits = Limits()

    def plan(self) -> tuple[list[Part], tuple[str, ...]]:
        """Return a part for each file, and the names of the splits that have records.

        Raises:
          ValueError: the metadata are damaged, the records are not ArrayRecord, or a feature or file is missing.
        """
        info = sources.read_builder(self.directory).info
        features = self._features(sources.feature_kinds(self.directory, info.features))
        splits = tuple(name for name, split in info.splits.items() if split.num_examples)
        require(bool(splits), self.directory, "have records in a split", Verbatim("none"))
        parts = []
        for split in splits:
            files, lengths = info.splits[split].filepaths, info.splits[split].shard_lengths
            sources.check_files(self.directory, files)
            for file, length in zip(map(os.fspath, files), lengths, strict=True):
                parts.append(Part(os.path.basename(file), length, (split, file, length, *features)))
        return parts, splits

    def _features(self, kinds: dict[str, str]) -> tuple[str, str]:
        """Return the names of the image and the caption feature."""
        images = [name for name, kind in kinds.items() if kind == "Image"]
        texts = [name for name, kind in kinds.items() if kind in ("Text", "Sequence(Text)")]
        image = columns(images, (self.image_key or "image",))
        if not image and not self.image_key and len(images) == 1:
            image = images
        caption = columns(texts, (self.caption_key,) if self.caption_key else _NAMES)
        for found, option, key, kind in (
            (image, "--image-key", self.image_key or "image", "Image"),
            (caption, "--caption-key", self.caption_key or "caption", "Text"),
        ):
            fix = f"name the right one with {option}"
            rule, got = f"have the {kind} feature {key!r}", Verbatim(sources.told(kinds))
            require(bool(found), self.directory, rule, got, fix)
        return image[0], caption[0]

    def read(self, part: Part) -> Iterator[Found | LeftOut]:
        split, file, length, image, caption = part.what
        done = 0
        try:
            input_files.open_file(Path(file)).close()  # refuses what is not a regular file
            for record in shards.read_sound(Path(file)):
                where = f"{part.name}:{done}"
                try:
                    found = Found(where, *_parsed(record, image, caption), split)
                    self.limits.check_image(len(found.image))
                except Unusable as error:
                    found = error.of(where)
                yield found
                done += 1
        except (OSError, input_files.NoFileError) as error:
            yield listing.unreadable(error, f"{part.name}:{done}")
        except (RuntimeError, ValueError) as error:
            yield LeftOut(f"{part.name}:{done}", "damaged archive", f"the rest is not read: {error}")
        else:
            if done != length:
                yield LeftOut(part.name, "damaged archive", f"{length} records are promised, {done} are there")


def _parsed(record: bytes | Exception, image: str, caption: str) -> tuple[bytes, tuple[str, ...]]:
    """Return the encoded picture and the captions of a tf.train.Example; nested names are joined by "/".

    Raises:
      Unusable: the record is damaged or has no picture, or a caption is not UTF-8.
    """
    from google.protobuf.message import DecodeError
    from tensorflow_datasets.proto import tf_example_pb2

    try:
        if isinstance(record, Exception):
            raise record
        values = tf_example_pb2.Example.FromString(record).features.feature
        pictures, texts = (values[key].bytes_list.value if key in values else () for key in (image, caption))
        if not pictures:
            raise Unusable("no picture", f"no {image} in this record")
        return pictures[0], tuple(text.decode("utf-8") for text in texts)
    except UnicodeDecodeError as error:
        raise Unusable("unreadable caption", f"not UTF-8: {error}") from error
    except (DecodeError, RuntimeError) as error:
        raise Unusable("damaged archive", f"this record is not read: {error}") from error
