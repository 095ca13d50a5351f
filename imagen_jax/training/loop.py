"""Training one stage from start, or from its newest checkpoint, to its last step."""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax import parallel
from imagen_jax.config import StageConfig, flat, validate
from imagen_jax.data import pipeline, sources
from imagen_jax.structs import TrainState
from imagen_jax.text import cache
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training import checkpoint
from imagen_jax.training import state as states
from imagen_jax.training.meter import Meter, utilisation_per_image_s
from imagen_jax.training.monitor import Monitor
from imagen_jax.training.step import make_train_step
from imagen_jax.training.stopping import stop_requests, watchdog
from imagen_jax.training.writer import Writer, check_wandb

REPLAY_FILE = "nonfinite.json"


class Result(NamedTuple):
    """The state after the last step, and the signal that ended training early, if one did."""

    state: TrainState
    stopped_by: int | None


class Data(NamedTuple):
    """What a stage is trained and looked at with; `held_out` is None where the data set has no such split."""

    source: sources.Source
    held_out: sources.Source | None
    encoder: TextEncoder


def train(config: StageConfig, workdir: str | Path) -> Result:
    """Trains the stage in `workdir`/`config.name`. Every process of a run calls it.

    SIGINT and SIGTERM end it after the current step, or one of the next, with a checkpoint. Called again with
    the same configuration, on the same devices or others, it continues; on the same, to the bit as if it had never
    stopped.
    """
    # --- check everything before anything is written -------------------------------------------
    parallel.agree(lambda: validate(config))
    options = flat(config)
    parallel.require_same({"the kinds of options": " ".join(options), "the code of imagen_jax": _code()})
    parallel.require_same({name: json.dumps(value) for name, value in options.items()})
    mesh = parallel.make_mesh(config.run.fsdp, height=config.run.height)
    data = parallel.agree(lambda: _open(config, mesh))
    parallel.require_same({"the data set": _signature(data.source)})
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, width=data.encoder.width))
    directory = Path(workdir) / config.name
    with checkpoint.alone(directory), watchdog(config.run.stall_timeout) as alive:
        parallel.agree(lambda: checkpoint.claim(directory, config))
        embeddings = embedding_cache(config, data, alive)
        source, held_out, _ = data
        del data  # the language model with it: training has its own use for the memory
        return _Run(config, directory, mesh, source, held_out, embeddings).train(alive)


def _open(config: StageConfig, mesh: Mesh) -> Data:
    """Opens what the configuration names; raises a ValueError for whatever this process cannot train with."""
    if config.cond_image_channels:
        raise ValueError(
            f"cond_image_channels must be 0 here, since data sets hold no such image; got "
            f'{config.cond_image_channels}: train with stage.loss and a batch of your own, which has "cond_image".'
        )
    parallel.check_batch(config.optim.batch_size, config.optim.accumulation, mesh)
    check_wandb(config.run.wandb)
    options = {"image_key": config.data.image_key, "caption_key": config.data.caption_key}
    source = sources.open_source(config.data.path, config.data.split, **options)
    held_out = _held_out(config, **options)
    # Its parameters are read only if there is something left to embed.
    encoder = TextEncoder.from_config(config.text, parallel.make_mesh(devices=jax.local_devices()))
    refuse_other_caches(config, encoder)
    return Data(source, held_out, encoder)


def _held_out(config: StageConfig, **options: str) -> sources.Source | None:
    """The pictures that the run is looked at with, if it is and the data set has them."""
    path, run = config.data.path, config.run
    split = run.validation_split
    if not (run.validate_every or run.sample_every) or split.split("[")[0] not in sources.splits(path):
        return None
    found = sources.open_source(path, split, **options)
    if len(found) > run.validation_images and "[" not in split:  # the captions of more need not be embedded
        found = sources.open_source(path, f"{split}[:{run.validation_images}]", **options)
    return found


def _signature(source: sources.Source) -> str:
    """Tells data sets apart that hosts see under one name."""
    first, last = source[0], source[-1]
    return f"{len(source)} {first['caption']} {last['caption']}"


class _Run:
    """What follows once everything has proved right and the directory is this run's."""

    def __init__(
        self,
        config: StageConfig,
        directory: Path,
        mesh: Mesh,
        source: sources.Source,
        held_out: sources.Source | None,
        embeddings: cache.EmbeddingCache,
    ):
        self._config, self._directory, self._mesh = config, directory, mesh
        self._source, self._held_out = source, held_out
        self._data = pipeline.make_loader(
            source,
            embeddings.__getitem__,
            image_size=config.image_size,
            crop=config.data.crop,
            crop_size=config.crop_size,
            # The crop's low-res image is then a crop of the picture's, to the pixel.
            crop_grid=config.low_res_factor if config.crop_size else 1,
            batch_size=config.optim.batch_size,
            text_length=config.text.length,
            seed=config.seed,
            flip=config.data.flip,
            num_threads=config.run.data_threads,
            num_workers=config.run.data_workers,
            shard_index=jax.process_index(),
            shard_count=jax.process_count(),
        )
        shown = source if held_out is None else held_out
        self._monitor = Monitor(config, mesh, held_out, shown, embeddings)

    def train(self, alive: Callable[[], None]) -> Result:
        """`alive` is called while there is progress."""
        config, run = self._config, self._config.run
        stopped_by = None
        with checkpoint.Checkpoints(self._directory, config) as checkpoints:
            # --- state: restored if there is a checkpoint, else new; in this order --------------
            abstract = states.abstract_state(config, self._mesh)
            state = self._state(checkpoints, abstract)
            alive()
            first, last = int(state.step), run.num_steps
            checkpoint.check_space(self._directory, abstract)

            # --- train --------------------------------------------------------------------------
            step = jax.jit(
                make_train_step(config, self._mesh),
                donate_argnums=0,
                out_shardings=(states.shardings(abstract), None),
            )
            with Writer(self._directory, config, first) as writer, stop_requests() as asked_to_stop:
                writer.say(self._describe(abstract, first))
                meter = Meter(config, first, utilisation_per_image_s(config, self._mesh.size))
                for done in range(first + 1, last + 1):
                    alive()
                    batch, waited, undecodable = self._next_batch()
                    if done == first + 1:
                        step = self._compiled(step, state, batch, writer, meter)
                        alive()
                    state, metrics = step(state, batch)
                    meter.add(metrics, waited, undecodable)
                    writer.advance()
                    # Asked once: a signal during what follows waits for the next step.
                    stopped_by = asked_to_stop(done)
                    is_saving = done == last or stopped_by or done % run.checkpoint_every == 0
                    is_looking = self._monitor.is_due(done) and not stopped_by
                    if is_saving or is_looking or done % run.log_every == 0:  # nothing is saved unchecked
                        self._log(writer, meter, done, self._look(state, writer, meter) if is_looking else {})
                        checkpoints.check()
                    if is_saving:
                        checkpoints.save(state, self._data.get_state())  # before the next batch is drawn
                    if stopped_by:
                        writer.say(
                            f"{config.name}: stopped at step {done} of {last}; the same command continues"
                        )
                        break
                alive()
        self._data.close()
        return Result(state, stopped_by)

    def _state(self, checkpoints: checkpoint.Checkpoints, abstract: TrainState) -> TrainState:
        if checkpoints.latest_step is None:
            return states.init_state(self._config, abstract)
        state, position = checkpoints.restore(abstract)
        self._data.set_state(position)
        return state

    def _describe(self, abstract: TrainState, first: int) -> str:
        config, spread = self._config, parallel.shares(abstract)
        line = (
            f"{config.name}: {states.count(abstract.params) / 1e6:.2f}M parameters, {len(self._source)} pictures, "
            f"{self._mesh.size} x {jax.devices()[0].device_kind}, step {first} of {config.run.num_steps}"
        )
        if config.run.fsdp > 1:
            line += f", {100 * spread.replicated:.1f} % of the state on every device"
        if self._held_out is None and config.run.validate_every:
            line += f"; no validation, since the data set has no split {config.run.validation_split!r}"
        return line

    def _next_batch(self) -> tuple[Any, float, int]:
        """The next batch on the devices, how long it was waited for, and how many of its records were replaced."""
        begin = time.perf_counter()
        batch = next(self._data)
        waited = time.perf_counter() - begin
        replaced = batch.pop("undecodable")
        for number in replaced[replaced >= 0][:8]:
            print(
                f"Record {number} of {self._source.name} cannot be decoded; another stands for it.",
                flush=True,
            )
        return parallel.shard_batch(batch, self._mesh), waited, int(np.sum(replaced >= 0))

    def _compiled(self, step: Any, state: TrainState, batch: Any, writer: Writer, meter: Meter) -> Any:
        begin = time.perf_counter()
        program = parallel.compiled(step, state, batch)
        seconds = time.perf_counter() - begin
        writer.say(f"{self._config.name}: compiled in {seconds:.0f} s")
        meter.pause(seconds)
        return program

    def _look(self, state: TrainState, writer: Writer, meter: Meter) -> dict[str, float]:
        jax.block_until_ready(state.step)  # the steps' own time ends here
        values = self._monitor.look(state, writer)
        meter.pause(values["look_s"])
        return values

    def _log(self, writer: Writer, meter: Meter, done: int, looked: dict[str, float]) -> None:
        values, skipped, hopeless = meter.read(done)
        if hopeless is not None:
            raise FloatingPointError(self._give_up(hopeless))
        if skipped:
            steps = f"step{'s' if len(skipped) > 1 else ''} {', '.join(map(str, skipped[:8]))}"
            writer.say(f"{self._config.name}: the gradient of {steps} was not finite; skipped")
        writer.write(done, values | looked)

    def _give_up(self, steps: range) -> str:
        """Leaves what is needed to replay steps that were not finite, and says so."""
        file, name = self._directory / REPLAY_FILE, self._config.name
        if jax.process_index() == 0:
            found = [{"step": step, "records": self._data.records(step - 1)} for step in steps]
            content = {"stage": name, "data": self._config.data.path, "steps": found}
            file.write_text(json.dumps(content) + "\n")
        return (
            f"the gradient of stage {name} was not finite in steps {steps[0]} to {steps[-1]}, more than "
            f"run.max_skipped {self._config.run.max_skipped} in a row; their records are in {file}. Lower "
            "optim.learning_rate or set optim.clip_norm; the last checkpoint is unharmed."
        )


def _code() -> str:
    """The text of the whole package."""
    package = Path(__file__).parents[1]
    return "".join(file.read_text() for file in sorted(package.rglob("*.py")))


def refuse_other_caches(config: StageConfig, encoder: TextEncoder) -> None:
    """Raises ValueError if the data set has embeddings, but of other encoders only.

    They may have taken days: whoever wants others says so, by scripts/embed_text.py.
    """
    directory = cache.directory_of(config.data.path)
    if cache.describe(directory):
        cache.EmbeddingCache.open(directory, encoder.fingerprint)


def embedding_cache(config: StageConfig, data: Data, alive: Callable[[], None]) -> cache.EmbeddingCache:
    """The embeddings of all captions that the run needs; those that are missing are named and computed first.

    scripts/embed_text.py does that beforehand. Each process computes its share.
    """
    directory = cache.directory_of(config.data.path)
    share = (jax.process_index(), jax.process_count())
    used = [source for source in (data.source, data.held_out) if source is not None]
    captions = itertools.chain(*map(sources.captions, used), config.run.prompts)
    total = sum(map(len, used)) + len(config.run.prompts)
    if cache.describe(directory):
        there = cache.EmbeddingCache.open(directory, data.encoder.fingerprint)
        captions = _naming_missing(captions, there, directory)

    def build() -> cache.EmbeddingCache:
        return cache.build(_watched(captions, alive), data.encoder, directory, share=share, total=total)

    parallel.agree(build)
    return parallel.agree(lambda: cache.EmbeddingCache.open(directory, data.encoder.fingerprint))


def _naming_missing(captions: Iterable[str], there: cache.EmbeddingCache, directory: Path) -> Iterator[str]:
    """The captions; says once that the cache lacks some, and which are the first of them."""
    missing, is_said = [], jax.process_index() > 0

    def say() -> None:
        print(
            f"{directory} lacks captions, such as {', '.join(map(repr, missing))}: they are embedded now; "
            "scripts/embed_text.py does so beforehand.",
            flush=True,
        )

    for caption in captions:
        if not is_said and caption not in there:
            missing.append(caption)
            if len(missing) == 3:
                say()
                is_said = True
        yield caption
    if missing and not is_said:
        say()


def _watched(captions: Iterable[str], alive: Callable[[], None]) -> Iterator[str]:
    """The captions; embedding them, which may take hours, counts as progress."""
    for i, caption in enumerate(captions):
        if i % 64 == 0:
            alive()
        yield caption
