"""What a stage is trained and evaluated with: data sets, and the embeddings of their captions."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from imagen_jax import processes, sharding
from imagen_jax.checks import require, within
from imagen_jax.config import StageConfig, TextConfig
from imagen_jax.data import reader, sources
from imagen_jax.structs import TextCond
from imagen_jax.text import cache, encoders
from imagen_jax.training.stopping import Watchdog
from imagen_jax.training.writer import check_wandb


class Inputs(NamedTuple):
    """Data sets and text encoder of a run.

    `held_out` is None if the data set has no validation split, `prior` without `data.prior_path`.
    """

    source: sources.Source
    held_out: sources.Source | None
    prior: sources.Source | None
    signatures: dict[str, str]  # to detect hosts that see other data sets or models under the same path
    encoder: encoders.Encoder

    def recorded_text(self, config: TextConfig) -> TextConfig:
        """Return `config` with what training takes from the encoder."""
        return dataclasses.replace(config, width=self.encoder.width, model_hash=encoders.model_hash(self.encoder))


class Embedded(NamedTuple):
    """Data sets of a run with the embeddings of their captions; `embeddings` has also those of `held_out`, of prompts,
    and of the empty caption where the network reads it."""

    source: sources.Source
    held_out: sources.Source | None
    embeddings: cache.EmbeddingCache
    prior: tuple[sources.Source, cache.EmbeddingCache] | None


def open_inputs(config: StageConfig, mesh: Mesh) -> Inputs:
    """Return what the configuration names; raise a ValueError for whatever this process cannot train with."""
    sharding.check_batch(config.optim.batch_size, config.optim.accumulation, mesh)
    check_wandb(config.run.wandb)
    options = {"image_key": config.data.image_key, "caption_key": config.data.caption_key}
    source = sources.open_source(config.data.path, config.data.split, **options)
    held_out = _held_out(config, **options)
    prior = None
    if config.data.prior_path:
        try:
            prior = sources.open_source(config.data.prior_path, config.data.prior_split, **options)
        except ValueError as error:
            raise within("data.prior_path", error) from None
        ways = 2 * sharding.num_batch_shards(mesh) * config.optim.accumulation
        rule = f"be divisible by 2 x devices x optim.accumulation = {ways} with data.prior_path"
        require(config.optim.batch_size % ways == 0, "optim.batch_size", rule, config.optim.batch_size)
    # Its parameters are read only if there is something left to embed.
    encoder = encoders.from_config(config.text, sharding.make_mesh(devices=jax.local_devices()))
    weights = encoders.model_hash(encoder)
    rule = f"be that of {config.text.encoder}, {weights}, or None"
    require(config.text.model_hash in (None, weights), "text.model_hash", rule, config.text.model_hash)
    for path in filter(None, (config.data.path, config.data.prior_path)):
        _refuse_other_encoders(path, encoder)
    signatures = {"the data set": signature(source), "its validation split": signature(held_out)}
    signatures |= {"data.prior_path": signature(prior), "the weights of the text encoder": weights}
    return Inputs(source, held_out, prior, signatures, encoder)


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


def _refuse_other_encoders(path: str, encoder: encoders.Encoder) -> None:
    """Raise ValueError if the data set has embeddings, but of other encoders only.

    They may have taken days: whoever wants others says so, by imagen-jax embed.
    """
    directory = cache.directory_of(path)
    if cache.describe(directory):
        cache.check_encoder(directory, encoder.fingerprint, getattr(encoder, "description", encoder.name))


def embedded(config: StageConfig, data: Inputs, watchdog: Watchdog) -> Embedded:
    """Return the data sets with the embeddings of all captions that the run needs.

    Those that are missing are named and computed first; imagen-jax embed does that beforehand. Each process computes
    its share.
    """
    used = [source for source in (data.source, data.held_out) if source is not None]
    prompts = (*config.run.prompts, *cache.always_needed(config))
    embeddings = _cache(config.data.path, prompts, used, data.encoder, watchdog)
    prior = None
    if data.prior is not None:
        prior = data.prior, _cache(config.data.prior_path, (), [data.prior], data.encoder, watchdog)
    return Embedded(data.source, data.held_out, embeddings, prior)


def null_caption(config: StageConfig, embeddings: cache.EmbeddingCache) -> TextCond | None:
    """Return the null caption of guidance [1, L, D] in NumPy; None if it is zeros."""
    if not config.network.reads_empty_caption:
        return None
    padded = reader.pad_text([embeddings[""]], config.text.length)
    return TextCond(padded["text"], padded["text_mask"])


def _cache(
    path: str, prompts: Sequence[str], used: list[sources.Source], encoder: encoders.Encoder, watchdog: Watchdog
) -> cache.EmbeddingCache:
    """Return the embeddings of prompts and of the captions of splits of the data set at `path`."""
    directory, share = cache.directory_of(path), (jax.process_index(), jax.process_count())

    def build() -> None:
        cache.build(prompts, encoder, directory, sources=used, share=share, on_progress=watchdog.alive)
        watchdog.rest()  # other processes may have a larger share

    processes.check_on_all_processes(build)
    watchdog.alive()
    return processes.check_on_all_processes(lambda: cache.EmbeddingCache.open(directory, encoder.fingerprint))
