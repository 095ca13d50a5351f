"""What a run tells its user at its start, at its end, and when it fails."""

import warnings
from pathlib import Path
from typing import Any

import jax

from imagen_jax import sharding
from imagen_jax.config import RunConfig, StageConfig
from imagen_jax.data import sources
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.storage import files
from imagen_jax.structs import TrainState
from imagen_jax.training.optim import learning_rate
from imagen_jax.training.state import count
from imagen_jax.training.writer import METRICS_FILE, SAMPLES

REPLAY_FILE = "nonfinite.json"


def describe(
    config: StageConfig, abstract: TrainState, first: int, source: sources.Source, has_validation: bool
) -> str:
    """Return a line about a run that begins: its parameters, data, devices and steps.

    Args:
      config: of the stage.
      abstract: as from `state.abstract_state`.
      first: number of steps done before.
      source: data set to train on.
      has_validation: whether there is a data set to validate on.
    """
    counts, device = sharding.byte_counts(abstract), jax.tree.leaves(abstract)[0].sharding
    adapters = f" in adapters of {count(abstract.frozen) / 1e6:.2f}M" if config.lora.rank else ""
    line = (
        f"{config.name}: {count(abstract.params) / 1e6:.2f}M parameters{adapters}, {len(source)} pictures, "
        f"{device.num_devices} x {jax.devices()[0].device_kind}, step {first} of {config.run.num_steps}"
    )
    if config.run.fsdp > 1:
        line += f", {100 * counts.replicated:.1f} % of the state on every device"
    if config.init_from:
        line += f", initial parameters from {config.init_from}"
    if config.optim.teacher:
        line += f", teacher {config.optim.teacher}"
    if config.distilled.steps:
        line += f", distilled to {config.distilled.steps} steps"
    if config.run.validate_every and not has_validation:
        reason = f"no validation, since the data set has no split {config.run.validation_split!r}"
        if config.run.validation_split != RunConfig().validation_split:  # asked for
            warnings.warn(f"--run.validation-split must be a split of the data set; {reason}.", stacklevel=2)
        line += f"; {reason}"
    return line


def summarize(config: StageConfig, directory: Path, step: int) -> str:
    """Return a line about a run that has ended: its last step, and where its files are."""
    places = {
        "checkpoints": directory / "checkpoints",
        "metrics": directory / METRICS_FILE,
        "samples": directory / SAMPLES,
    }
    found = [f"{name} in {path}" for name, path in places.items() if path.exists()]
    return f"{config.name}: trained to step {step}; {', '.join(found)}"


def nonfinite_error(
    config: StageConfig, directory: Path, steps: list[dict[str, Any]], latest: int | None
) -> FloatingPointError:
    """Write what is needed to replay steps whose gradients were not finite, and return the error that says so.

    Args:
      config: of the stage.
      directory: of the stage.
      steps: of each step, its number under "step" and the numbers of its records under "records".
      latest: step of the newest checkpoint, None if there is none.
    """
    file, name, data = directory / REPLAY_FILE, config.name, config.data
    where = f"are in {file}"
    if jax.process_index() == 0:
        content = {"stage": name, "data": data.path, "split": data.split, "seed": config.seed}
        content |= {"checkpoint": latest, "steps": steps}
        try:
            files.write_json(file, content)
        except OSError as error:
            where = f"cannot be written ({error}); those of the first are {steps[0]['records']}"
    if latest is None:
        fix = "There is no checkpoint yet: begin in another --workdir with a lower {}."
    else:
        fix = f"The checkpoint of step {latest} is unharmed: continue from it with a lower {{}}, given as an "
        fix += f"option and changed in {directory / stage_dir.CONFIG_FILE} too."
    return FloatingPointError(
        f"the gradient of stage {name} was not finite in steps {steps[0]['step']} to {steps[-1]['step']}, more than "
        f"run.max_skipped {config.run.max_skipped} in a row; their records {where}. "
        f"{fix.format('optim.learning_rate or optim.clip_norm')}"
    )


def warn_of_learning_rate(config: StageConfig) -> None:
    """Warn, in process 0, of a run that ends in its warm-up, or goes on when its rate has fallen to 0."""
    optim, num_steps = config.optim, config.run.num_steps
    if jax.process_index() > 0:
        return
    if optim.warmup_steps > num_steps:
        reached = float(learning_rate(optim)(num_steps - 1))
        warnings.warn(
            f"--optim.warmup-steps must be at most --run.num-steps {num_steps} to reach the learning rate "
            f"{optim.learning_rate:g}; got {optim.warmup_steps}, so that the rate only reaches {reached:.2g} "
            f"({100 * reached / optim.learning_rate:.3g} %): give --optim.warmup-steps {max(1, num_steps // 20)}.",
            stacklevel=2,
        )
    if 0 < optim.decay_steps < num_steps:
        warnings.warn(
            f"--optim.decay-steps must be 0 or at least --run.num-steps {num_steps} for all steps to train; got "
            f"{optim.decay_steps}, so that the rate of the last {num_steps - optim.decay_steps} steps is 0: give "
            f"--optim.decay-steps {num_steps}, in another --workdir if this run began without it.",
            stacklevel=2,
        )
