"""What a stage is trained and evaluated with: data sets, and the embeddings of their captions."""

import contextlib
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from imagen_jax import processes, sharding
from imagen_jax.config import StageConfig
from imagen_jax.data import sources
from imagen_jax.text import cache, encoders
from imagen_jax.training.stopping import Watchdog
from imagen_jax.training.writer import check_wandb


class Inputs(NamedTuple):
    """Data sets and text encoder of a run; `held_out` is None if the data set has no validation split."""

    source: sources.Source
    held_out: sources.Source | None
    signatures: dict[str, str]  # to detect hosts that see other data sets under the same path
    encoder: encoders.Encoder


def open_inputs(config: StageConfig, mesh: Mesh) -> Inputs:
    """Return what the configuration names; raise a ValueError for whatever this process cannot train with."""
    sharding.check_batch(config.optim.batch_size, config.optim.accumulation, mesh)
    check_wandb(config.run.wandb)
    options = {"image_key": config.data.image_key, "caption_key": config.data.caption_key}
    source = sources.open_source(config.data.path, config.data.split, **options)
    held_out = _held_out(config, **options)
    # Its parameters are read only if there is something left to embed.
    encoder = encoders.from_config(config.text, sharding.make_mesh(devices=jax.local_devices()))
    _refuse_other_encoders(config, encoder)
    signatures = {"the data set": signature(source), "its validation split": signature(held_out)}
    return Inputs(source, held_out, signatures, encoder)


def _held_out(config: StageConfig, **options: str) -> sources.Source | None:
    """Return the data set to validate on, None if nothing is validated or sampled or there is no such split."""
    path, run = config.data.path, config.run
    split = run.validation_split
    if not (run.validate_every or run.sample_every) or split.split("[")[0] not in sources.splits(path):
        return None
    found = sources.open_source(path, split, **options)
    if len(found) > run.validation_images and "[" not in split:  # the captions of more need not be embedded
        found = sources.open_source(path, f"{split}[:{run.validation_images}]", **options)
    return found


def signature(source: sources.Source | None) -> str:
    """Return a text that differs between data sets: their number of records, first and last caption."""
    if source is None:
        return "none"
    last = ""
    with contextlib.suppress(Exception):  # whatever the format raises for a damaged record
        last = source[-1]["caption"]
    return f"{len(source)} records from {next(sources.captions(source), '')!r:.60} to {last!r:.60}"


def _refuse_other_encoders(config: StageConfig, encoder: encoders.Encoder) -> None:
    """Raise ValueError if the data set has embeddings, but of other encoders only.

    They may have taken days: whoever wants others says so, by imagen-jax embed.
    """
    directory = cache.directory_of(config.data.path)
    if cache.describe(directory):
        cache.check_encoder(directory, encoder.fingerprint)


def embedding_cache(config: StageConfig, data: Inputs, watchdog: Watchdog) -> cache.EmbeddingCache:
    """Return the embeddings of all captions that the run needs; those that are missing are named and computed first.

    imagen-jax embed does that beforehand. Each process computes its share.
    """
    directory = cache.directory_of(config.data.path)
    share = (jax.process_index(), jax.process_count())
    used = [source for source in (data.source, data.held_out) if source is not None]

    def build() -> None:
        cache.build(
            config.run.prompts, data.encoder, directory, sources=used, share=share, on_progress=watchdog.alive
        )
        watchdog.rest()  # other processes may have a larger share

    processes.check_on_all_processes(build)
    watchdog.alive()
    return processes.check_on_all_processes(
        lambda: cache.EmbeddingCache.open(directory, data.encoder.fingerprint)
    )
