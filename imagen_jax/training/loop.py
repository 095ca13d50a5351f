"""Training one stage from start, or from its newest checkpoint, to its last step."""

import dataclasses
import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from imagen_jax import parallel
from imagen_jax.config import StageConfig, to_dict, validate
from imagen_jax.data import pipeline, sources
from imagen_jax.structs import TrainState
from imagen_jax.text import cache
from imagen_jax.text.encoder import TextEncoder
from imagen_jax.training import checkpoint
from imagen_jax.training import state as states
from imagen_jax.training.step import make_train_step
from imagen_jax.training.writer import Writer

REPLAY_FILE = "nonfinite.json"


class Result(NamedTuple):
    """The state after the last step, and the signal that ended training early, if one did."""

    state: TrainState
    stopped_by: int | None


def train(config: StageConfig, workdir: str | Path) -> Result:
    """Trains the stage in `workdir`/`config.name`.

    SIGINT and SIGTERM end it after the current step, or the next, with a checkpoint. Called again with
    the same configuration it continues, to the bit as if it had never stopped.
    """
    # --- check everything before anything is written -------------------------------------------
    validate(config)
    parallel.require_same(
        {"the configuration": json.dumps(to_dict(config)), "the code of imagen_jax": _code()}
    )
    if config.cond_image_channels:
        raise ValueError(
            f"cond_image_channels must be 0 here, since data sets hold no such image; got "
            f'{config.cond_image_channels}: train with stage.loss and a batch of your own, which has "cond_image".'
        )
    directory = Path(workdir) / config.name
    mesh = parallel.make_mesh(config.run.fsdp, height=config.run.height)
    parallel.check_batch(config.optim.batch_size, config.optim.accumulation, mesh)
    source = sources.open_source(config.data.path, "train")
    # Its parameters are read only if there is something left to embed.
    encoder = TextEncoder.from_config(config.text, parallel.make_mesh(devices=jax.local_devices()))
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, width=encoder.width))
    refuse_other_caches(config, encoder)
    with checkpoint.alone(directory):
        checkpoint.claim(directory, config)
        embeddings = embedding_cache(config, source, encoder)
        del encoder  # training has its own use for the memory
        return _train(config, directory, mesh, source, embeddings)


def _train(
    config: StageConfig, directory: Path, mesh: Mesh, source: sources.Source, embeddings: cache.EmbeddingCache
) -> Result:
    """What follows once everything has proved right and the directory is this run's."""
    data = pipeline.make_loader(
        source,
        embeddings.__getitem__,
        image_size=config.image_size,
        crop_size=config.crop_size,
        # The crop's low-res image is then a crop of the picture's, to the pixel.
        crop_grid=config.low_res_factor if config.crop_size else 1,
        batch_size=config.optim.batch_size,
        text_length=config.text.length,
        seed=config.seed,
        flip=config.data.flip,
        shard_index=jax.process_index(),
        shard_count=jax.process_count(),
    )

    with checkpoint.Checkpoints(directory, config) as checkpoints:
        # --- state: restored if there is a checkpoint, else new; in this order ------------------
        abstract = states.abstract_state(config, mesh)
        if checkpoints.latest_step is None:
            state = states.init_state(config, abstract)
        else:
            state, position = checkpoints.restore(abstract)
            data.set_state(position)
        first, last = int(state.step), config.run.num_steps
        spread = parallel.shares(abstract)
        print(
            f"{config.name}: {states.count(abstract.params) / 1e6:.2f}M parameters, {len(source)} pictures, "
            f"{mesh.size} x {jax.devices()[0].device_kind}, step {first} of {last}"
            + (
                f", {100 * spread.replicated:.1f} % of the state on every device"
                if config.run.fsdp > 1
                else ""
            ),
            flush=True,
        )

        # --- train ------------------------------------------------------------------------------
        step = jax.jit(
            make_train_step(config, mesh), donate_argnums=0, out_shardings=(states.shardings(abstract), None)
        )
        with Writer(directory, config.name, first, last) as writer, _stop_signals() as stop:
            pending, window = [], (time.perf_counter(), first, 0)
            for done in range(first + 1, last + 1):
                state, metrics = step(state, parallel.shard_batch(next(data), mesh))
                pending.append(metrics)
                writer.advance()
                is_stopping = bool(stop)  # asked once: a signal during what follows waits for the next step
                is_saving = done == last or is_stopping or done % config.run.checkpoint_every == 0
                if is_saving or done % config.run.log_every == 0:  # nothing is saved unchecked
                    window = _log(writer, config, pending, done, window, directory, data)
                    pending = []
                if is_saving:
                    checkpoints.save(state, data.get_state())  # before the next batch is drawn
                if is_stopping:
                    writer.say(f"{config.name}: stopped at step {done} of {last}; the same command continues")
                    break
    data.close()
    return Result(state, stop[0] if stop else None)


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


def embedding_cache(
    config: StageConfig, source: sources.Source, encoder: TextEncoder
) -> cache.EmbeddingCache:
    """The embeddings of all captions of the data set; those that are missing are computed first.

    scripts/embed_text.py does that beforehand. Each process computes its share.
    """
    directory = cache.directory_of(config.data.path)
    share = (jax.process_index(), jax.process_count())
    cache.build(sources.captions(source), encoder, directory, share=share, total=len(source))
    multihost_utils.sync_global_devices("text embeddings are complete")
    return cache.EmbeddingCache.open(directory, encoder.fingerprint)


def _log(
    writer: Writer,
    config: StageConfig,
    pending: list,
    done: int,
    window: tuple,
    directory: Path,
    data: pipeline.Loader,
) -> tuple:
    """Fetches the metrics of the last steps, at most once every `log_every` steps, and writes them.

    `window` is (time, step) of the last call, and how many steps at its end were skipped in a row.
    """
    since, before, in_a_row = window
    fetched = jax.device_get(pending)
    skipped = [before + 1 + i for i, metrics in enumerate(fetched) if metrics["skipped"]]
    for step in range(before + 1, done + 1):
        in_a_row = in_a_row + 1 if step in skipped else 0
        if in_a_row > config.run.max_skipped:
            raise FloatingPointError(_give_up(config, directory, data, range(step - in_a_row + 1, step + 1)))
    if skipped:
        writer.say(
            f"{config.name}: the gradient of step{'s' if len(skipped) > 1 else ''} {', '.join(map(str, skipped[:8]))} "
            "was not finite; skipped"
        )
    now = time.perf_counter()
    values = {key: float(value) for key, value in fetched[-1].items()}
    losses = [float(metrics["loss"]) for metrics in fetched if not metrics["skipped"]]
    if losses:
        values["loss"] = sum(losses) / len(losses)
    values["skipped"] = len(skipped)
    values["images_per_s"] = (done - before) * config.optim.batch_size / (now - since)
    # JSON has no nan, and a skipped last step has nothing finite to show.
    writer.write(done, {key: value for key, value in values.items() if math.isfinite(value)})
    return now, done, in_a_row


def _give_up(config: StageConfig, directory: Path, data: pipeline.Loader, steps: range) -> str:
    """Leaves what is needed to replay steps that were not finite, and says so."""
    file = directory / REPLAY_FILE
    if jax.process_index() == 0:
        found = [{"step": step, "records": data.records(step - 1)} for step in steps]
        file.write_text(json.dumps({"stage": config.name, "data": config.data.path, "steps": found}) + "\n")
    return (
        f"the gradient of stage {config.name} was not finite in steps {steps[0]} to {steps[-1]}, more than "
        f"run.max_skipped {config.run.max_skipped} in a row; their records are in {file}. Lower optim.learning_rate or "
        "set optim.clip_norm; the last checkpoint is unharmed."
    )


@contextmanager
def _stop_signals() -> Iterator[list]:
    """A list that becomes non-empty when the process is asked to stop; a second signal stops it at once."""
    received: list[int] = []

    def handler(number: int, _) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)
