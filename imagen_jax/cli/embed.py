"""Embed all captions of a data set; training then reads them and does not load the language model.

  imagen-jax embed --preset shapes
  imagen-jax embed --preset shapes --text.encoder google/t5-v1_1-xxl --text.dtype bfloat16 --store int8

Takes the options of imagen-jax train, of which --data.path and --text.* matter: give both commands the same values.
It may be stopped at any time: the same command continues, and embeds nothing twice. Several machines or processes that
see the same data share the work: give each --share-index I --share-count N.
"""

import dataclasses
import logging
import time
from typing import Literal

from imagen_jax.cli import parsing
from imagen_jax.config import StageConfig

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    preset: str
    """Name of a file in configs/ without .py, or the path of such a file; or the directory of a cascade."""
    stage: str = ""
    """Name of a stage in the preset; empty: the first. All stages of a cascade share the captions."""
    splits: tuple[str, ...] = ()
    """Splits of the data set; none: all of them."""
    store: Literal["float16", "bfloat16", "float32", "int8"] | None = None
    """How numbers are stored, int8 with a scale per token; None: float16, or as in the cache there."""
    batch_size: int = 64
    """Captions embedded at once, of similar length."""
    fsdp: int = 1
    """Devices that share each copy of the language model, for one that is too large for a single device."""
    share_index: int = 0
    """Which share of the captions to embed, from 0."""
    share_count: int = 1
    """How many processes share the captions."""


def main(parsed: tuple[Options, StageConfig]) -> None:
    options, config = parsed
    from imagen_jax import checks, sharding
    from imagen_jax.config.validation import validate
    from imagen_jax.data import sources
    from imagen_jax.text import cache, encoders

    validate(config)
    checks.whole("--batch-size", options.batch_size, 1, 1 << 16)
    checks.whole("--fsdp", options.fsdp, 1, 1 << 16)
    checks.whole("--share-count", options.share_count, 1, 1 << 20)
    checks.whole("--share-index", options.share_index, 0, options.share_count - 1)
    import jax

    mesh = sharding.make_mesh(options.fsdp, jax.local_devices())
    data = config.data.path
    keys = {"image_key": config.data.image_key, "caption_key": config.data.caption_key}
    parts = [sources.open_source(data, split, **keys) for split in options.splits or sources.splits(data)]
    encoder = encoders.from_config(config.text, mesh)
    directory, start = cache.directory_of(data), time.perf_counter()
    embeddings = cache.build(
        cache.always_needed(config), encoder, directory, sources=parts, batch_size=options.batch_size,
        dtype=options.store, share=(options.share_index, options.share_count), repair=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    new, num = embeddings.num_new, len(embeddings)
    speed = f" at {new / seconds:.0f} captions/s" if new else ""
    _LOGGER.info(
        f"{directory}: {num} distinct captions by {encoder.name}, {new} of them new{speed}; "
        f"{embeddings.nbytes / max(num, 1):.0f} bytes per caption in {embeddings.dtype}."
    )


def parse(args: list[str]) -> tuple[Options, StageConfig]:
    return parsing.parse_stage(Options, __doc__, args)
