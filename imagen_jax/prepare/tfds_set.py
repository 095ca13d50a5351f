"""Captioned pictures of a TFDS data set in ArrayRecord files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.data import shards, sources
from imagen_jax.prepare import listing
from imagen_jax.prepare.captions import CAPTIONS, columns
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.parts import Part
from imagen_jax.prepare.pictures import Found
from imagen_jax.prepare.quarantine import LeftOut, Unusable
from imagen_jax.storage import input_files

_TEXTS = ("Text", "Sequence(Text)")
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
        builder = sources.read_builder(self.directory)
        sources.check_format(self.directory, builder)
        info = builder.info
        features = self._features(sources.feature_kinds(info.features))
        splits = tuple(name for name, split in info.splits.items() if split.num_examples)
        if not splits:
            raise ValueError(f"{self.directory} must have records in a split; got none.")
        parts = []
        for split in splits:
            files, lengths = info.splits[split].filepaths, info.splits[split].shard_lengths
            for file, length in zip(map(os.fspath, files), lengths, strict=True):
                if not os.path.exists(file):
                    raise ValueError(
                        f"{self.directory} must have all its files; got no {file}: make the data set again."
                    )
                parts.append(Part(os.path.basename(file), length, (split, file, length, *features)))
        return parts, splits

    def _features(self, kinds: dict[str, str]) -> tuple[str, str]:
        """Return the names of the image and the caption feature."""
        if not any("Text" in kind for kind in kinds.values()):
            raise ValueError(
                f"{self.directory} must have a feature of text for captions; got {sources.told(kinds)}."
            )
        images = [name for name, kind in kinds.items() if kind == "Image"]
        texts = [name for name, kind in kinds.items() if kind in _TEXTS]
        likely = columns(images, (self.image_key or "image",))
        if not likely and not self.image_key and len(images) == 1:
            likely = images
        image = (likely or [self.image_key or "image"])[0]
        caption = (columns(texts, (self.caption_key,) if self.caption_key else _NAMES) or [self.caption_key])[
            0
        ]
        for option, key, fitting, what in (
            ("--image-key", image, images, "Image"),
            ("--caption-key", caption or CAPTIONS[0], texts, "Text"),
        ):
            if key not in fitting:
                raise ValueError(
                    f"{self.directory} must have the {what} feature {key!r}; got {sources.told(kinds)}: "
                    f"name the right one with {option}."
                )
        return image, caption

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
                detail = f"{length} records are promised, {done} are there"
                yield LeftOut(part.name, "damaged archive", detail)


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
