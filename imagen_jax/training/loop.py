"""Training one stage from start, or from its newest checkpoint, to its last step."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax import compilation, processes, sharding
from imagen_jax.config import StageConfig, flat
from imagen_jax.config.validation import validate_for_training
from imagen_jax.data import pipeline, reader, sources
from imagen_jax.progress import logger
from imagen_jax.stage_dir import checkpoint, checkpoint_files, parameters
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.storage import files, locations
from imagen_jax.structs import TrainState
from imagen_jax.text import cache
from imagen_jax.training import initial, inputs, packing, prior, profiler, reports
from imagen_jax.training import state as states
from imagen_jax.training import teacher as teachers
from imagen_jax.training.meter import Meter
from imagen_jax.training.monitor import Monitor
from imagen_jax.training.step import make_train_step
from imagen_jax.training.stopping import StopRequests, Watchdog
from imagen_jax.training.utilisation import utilisation_per_image_s
from imagen_jax.training.writer import Writer


class Result(NamedTuple):
    """The state after the last step, and the signal that ended training early, if one did."""

    state: TrainState
    stopped_by: int | None


def train(config: StageConfig, workdir: str | Path, profile: int = 0) -> Result:
    """Train the stage in `workdir`/`config.name`. Every process of a run calls this.

    `profile` steps, soon after the first one, are traced into its directory `profile`; see `profiler`.

    SIGINT and SIGTERM end it after the current step, or one of the next, with a checkpoint. Called again with
    the same configuration, on the same devices or others, it continues; on the same, to the bit as if it had never
    stopped.
    """
    # --- check everything before anything is written -------------------------------------------
    config = processes.check_on_all_processes(lambda: validate_for_training(config))
    with Watchdog(config.run.stall_timeout) as watchdog:
        place = processes.check_on_all_processes(lambda: locations.location(workdir, "--workdir"))
        processes.check_on_all_processes(lambda: files.check_directory(place / config.name, "--workdir"))
        processes.check_on_all_processes(lambda: profiler.check(profile, place))
        options = flat(config)
        processes.require_same(
            {
                "the kinds of options": " ".join(options),
                "the code of imagen_jax": _code(),
                "--workdir": str(place if locations.is_remote(place) else place.absolute()),
            }
        )
        processes.require_same({name: json.dumps(value) for name, value in options.items()})
        directory = place / config.name
        unresolved = "init_from", "optim.teacher", "distilled.guidance_scale"
        processes.check_on_all_processes(lambda: stage_dir.check_config(directory, config, unresolved))
        mesh = sharding.make_mesh(config.run.fsdp, height=config.run.height)
        data = processes.check_on_all_processes(lambda: inputs.open_inputs(config, mesh))
        processes.require_same(data.signatures)
        config = dataclasses.replace(config, text=data.recorded_text(config.text))
        config = processes.check_on_all_processes(lambda config=config: initial.resolve(config, directory))
        config = processes.check_on_all_processes(lambda config=config: teachers.resolve(config, directory))
        places = {"--init-from": config.init_from, teachers.OPTION: config.optim.teacher}
        processes.require_same({f"the checkpoint of {option}": place for option, place in places.items()})
        with stage_dir.lock_directory(directory) as directory_lock:
            processes.check_on_all_processes(lambda: checkpoint_files.check_continuable(directory))
            processes.check_on_all_processes(lambda: stage_dir.write_config(directory, config))
            processes.check_on_all_processes(lambda: stage_dir.check_visible_everywhere(directory, config))
            embedded = inputs.embedded(config, data, watchdog)
            del data  # the language model with it: training has its own use for the memory
            return _Run(config, directory, directory_lock, mesh, embedded, watchdog).train(profile)


class _Run:
    """Trains a stage whose configuration and data are checked and whose directory is locked."""

    def __init__(
        self,
        config: StageConfig,
        directory: Path,
        directory_lock: stage_dir.DirectoryLock,
        mesh: Mesh,
        data: inputs.Embedded,
        watchdog: Watchdog,
    ):
        self._config, self._directory, self._lock, self._mesh = config, directory, directory_lock, mesh
        self._source, self._held_out, self._watchdog = data.source, data.held_out, watchdog
        self._prior = None if data.prior is None else data.prior[0]
        self._replaced: set[int] = set()
        self._base: dict[str, int | None] = {}  # fingerprint of what adapters are of, for checkpoints
        self._signature = inputs.signature(data.source)
        if data.prior is None:
            self._data = self._loader(data.source, data.embeddings, config.optim.batch_size)
        else:
            self._signature += f", and {inputs.signature(self._prior)}"
            half = config.optim.batch_size // 2
            loaders = self._loader(data.source, data.embeddings, half), self._loader(*data.prior, half)
            self._data = prior.Mixed(*loaders, len(data.source), config.optim.prior_weight)
        self._null = processes.check_on_all_processes(lambda: inputs.null_caption(config, data.embeddings))
        shown = data.source if data.held_out is None else data.held_out
        self._monitor = processes.check_on_all_processes(
            lambda: Monitor(config, mesh, data.held_out, shown, data.embeddings, watchdog.alive)
        )

    def _loader(self, source: sources.Source, embeddings: cache.EmbeddingCache, num: int) -> pipeline.Loader:
        """Return the batches of `num` rows of a data set."""
        config = self._config
        return pipeline.make_loader(
            source,
            processes.check_on_all_processes(lambda: embeddings.rows(source)),
            image_size=config.image_size,
            crop=config.data.crop,
            crop_size=config.crop_size,
            # The crop's low-res image is then a crop of the picture's, to the pixel.
            crop_grid=config.low_res_factor if config.crop_size else 1,
            batch_size=num,
            text_length=config.text.length,
            seed=config.seed,
            flip=config.data.flip,
            num_threads=config.run.data_threads,
            num_workers=config.run.data_workers,
            rows=sharding.local_batch_indices(self._mesh, num),
        )

    def train(self, profile: int) -> Result:
        with (
            StopRequests(self._mesh) as stops,
            checkpoint.Checkpoints(self._directory, self._config, self._lock) as checkpoints,
        ):
            # --- state: restored if there is a checkpoint, else new; in this order --------------
            abstract = states.abstract_state(self._config, self._mesh)
            state = self._state(checkpoints, abstract)
            saved = abstract.replace(frozen=None)
            processes.check_on_all_processes(lambda: stage_dir.check_space(self._directory, saved))
            self._watchdog.alive()
            with (
                Writer(self._directory, self._config, int(state.step)) as writer,
                profiler.Trace(self._directory / "profile", int(state.step), profile) as trace,
            ):
                first, has_validation = int(state.step), self._held_out is not None
                logger.info(reports.describe(self._config, abstract, first, self._source, has_validation))
                reports.warn_of_learning_rate(self._config)
                result = self._steps(state, abstract, checkpoints, writer, stops, trace)
                if result.stopped_by is None:
                    logger.info(reports.summarize(self._config, self._directory, int(result.state.step)))
            self._data.close()
        return result

    def _steps(
        self,
        state: TrainState,
        abstract: TrainState,
        checkpoints: checkpoint.Checkpoints,
        writer: Writer,
        stops: StopRequests,
        trace: profiler.Trace,
    ) -> Result:
        config, run = self._config, self._config.run
        first, last, stopped_by = int(state.step), run.num_steps, None
        meter = Meter(config, first, utilisation_per_image_s(config, self._mesh.size))
        teacher = teachers.load(config, self._mesh)
        packed = states.packed_shapes(config, abstract)
        state = packing.pack_arrays(state, packed)
        step = jax.jit(
            make_train_step(config, self._mesh, null=self._null),
            donate_argnums=0,
            out_shardings=(states.shardings(packed), sharding.replicated(self._mesh)),
            compiler_options=compilation.options(jax.default_backend()),
        )
        for done in range(first + 1, last + 1):
            self._watchdog.alive()
            trace.before(done)
            with meter.waiting():
                batch = next(self._data)
            undecodable = self._count_undecodable(batch.pop("undecodable"))
            batch = sharding.shard_batch(batch, self._mesh, config.optim.batch_size)
            if done == first + 1:
                step = self._compiled(step, (state, batch, teacher), writer, meter)
                stops.begin()
                self._monitor.cancelled = stops.asked_here
            state, metrics = step(state, batch, teacher)
            trace.after(done, metrics)
            meter.add(metrics, undecodable)
            writer.advance()
            stopped_by = stops.asked()  # once: a signal during what follows waits for the next step
            is_saving = done == last or stopped_by or done % run.checkpoint_every == 0
            is_evaluating = self._monitor.is_due(done) and not stopped_by
            if is_saving or is_evaluating or done % run.log_every == 0:  # nothing is saved unchecked
                values = self._read(writer, meter, done, checkpoints)
                checkpoints.check()
                is_evaluated = not is_evaluating
                try:
                    if is_evaluating:
                        with meter.paused():
                            values |= self._monitor.evaluate(packing.unpack_arrays(state), writer)
                        is_evaluated = True
                except compilation.Cancelled:
                    stopped_by, is_saving, is_evaluated = stops.asked(), True, True
                finally:
                    # In this order: once there is a checkpoint of a step, its metrics are not made again. If an
                    # evaluation fails, its step is saved, except with several processes: all of them must take part.
                    writer.write(done, values)
                    if is_saving and (is_evaluated or jax.process_count() == 1):
                        with meter.paused():
                            position = self._data.get_state()  # before the next batch is drawn
                            writer.flush()
                            whole = packing.unpack_arrays(state)
                            checkpoints.save(whole, position | {"data_set": self._signature} | self._base)
            if stopped_by:
                break
        self._watchdog.alive()
        return Result(packing.unpack_arrays(state), stopped_by)

    def _state(self, checkpoints: checkpoint.Checkpoints, abstract: TrainState) -> TrainState:
        config, is_new, params = self._config, checkpoints.latest_step is None, None
        if config.init_from and (is_new or config.lora.rank):
            params = parameters.initial(config, abstract.frozen or abstract.params)
        if config.lora.rank:
            self._base = {"base": parameters.fingerprint(config, params)}
        if is_new:
            return states.init_state(config, abstract, params)
        state, position = checkpoints.restore(abstract)
        if config.lora.rank:
            parameters.check_base(position.pop("base", None), self._base["base"], config)
            state = state.replace(frozen=params)
        before = position.pop("data_set", self._signature)  # checkpoints of before do not tell
        if before != self._signature:
            raise ValueError(
                f"{self._config.data.path} must hold the data set that {self._directory} was trained on, {before}; it "
                f"now holds {self._signature}. Put that one back, or give another --workdir."
            )
        self._data.set_state(position)
        return state

    def _count_undecodable(self, replaced: np.ndarray) -> int:
        """Return how many records of a batch were replaced, and log each of them once."""
        numbers = [int(number) for number in replaced[replaced >= 0]]
        for number in sorted(set(numbers) - self._replaced):
            first = len(self._source)
            source, own = (self._source, number) if number < first else (self._prior, number - first)
            reason = reader.reason_against(source, own, self._config.image_size)
            logger.info(
                f"Record {own} of {source.name} cannot be used ({reason}); using the next readable record "
                "instead."
            )
        self._replaced.update(numbers)
        return len(numbers)

    def _compiled(self, step: Any, args: tuple, writer: Writer, meter: Meter) -> Any:
        logger.info(f"{self._config.name}: compiling the train step, which can take some minutes")
        begin = time.perf_counter()
        with meter.paused():
            program = compilation.compile_jitted(step, *args)
        logger.info(f"{self._config.name}: compiled in {time.perf_counter() - begin:.0f} s")
        writer.resume()
        self._watchdog.alive()
        return program

    def _read(
        self, writer: Writer, meter: Meter, done: int, checkpoints: checkpoint.Checkpoints
    ) -> dict[str, float]:
        """Return the metrics up to step `done`; raise a FloatingPointError if too many steps in a row were skipped."""
        values, skipped, failed = meter.read(done)
        if failed is not None:
            found = [{"step": step, "records": self._data.records(step - 1)} for step in failed]
            raise reports.nonfinite_error(self._config, self._directory, found, checkpoints.latest_step)
        if skipped:
            steps = f"step{'s' if len(skipped) > 1 else ''} {', '.join(map(str, skipped[:8]))}"
            logger.info(f"{self._config.name}: the gradient of {steps} was not finite; skipped")
        return values


def _code() -> str:
    """Return the package's source code, to detect hosts that run different versions."""
    package = Path(__file__).parents[1]
    return "".join(file.read_text() for file in sorted(package.rglob("*.py")))
