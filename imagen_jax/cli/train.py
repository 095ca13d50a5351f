"""Train one stage of a preset, from the start or from its newest checkpoint.

  imagen-jax train --preset quickstart --stage base --workdir runs/quickstart
  imagen-jax train --preset quickstart --stage base --workdir runs/mine --data.path datasets/mine

Every option of the preset can be changed, for example --optim.batch-size 64 (see --help). Ctrl-C
leaves a checkpoint, and the same command continues from it. On several hosts start it on each: see
docs/pods.md.
"""

import dataclasses
import logging
import shlex
import signal
import sys

from imagen_jax import checks
from imagen_jax.cli import commands, parsing, stages
from imagen_jax.cli.options import given as options_given
from imagen_jax.config import StageConfig, distilled, flat
from imagen_jax.storage.locations import Location, location

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    preset: str
    """Name of a file in configs/ without .py, or the path of such a file; or the directory of a cascade, also of
    DeepFloyd IF in diffusers' layout, whose options are then the defaults."""
    stage: str
    """Name of the stage in the preset."""
    workdir: Location
    """Directory of the cascade, also gs:// or s3://; the stage goes to a sub-directory of its name."""
    profile: int = 0
    """Steps of which a trace is written to the stage's directory, for TensorBoard and Perfetto; 0: none."""


def main(parsed: tuple[Options, StageConfig]) -> int:
    options, config = parsed
    from imagen_jax import compilation, processes

    processes.initialize()
    compilation.use_compilation_cache()  # a run that was ended need not compile again
    from imagen_jax.training.loop import train

    if reason := misfit(options, config):
        _LOGGER.warning(f"The stages of {options.preset} will not form a cascade with this one: {reason}")
    result = train(config, options.workdir, options.profile)
    import jax

    if result.stopped_by is None:
        _LOGGER.info("\n".join(["Next:", *next_commands(options, sys.argv[1:])]))
        return 0
    if jax.process_index() == 0:
        _LOGGER.error(
            f"ended by {signal.Signals(result.stopped_by).name}: {config.name} stopped at step "
            f"{int(result.state.step)} of {config.run.num_steps}, with a checkpoint; the same command continues"
        )
    return 128 + result.stopped_by


def misfit(options: Options, config: StageConfig) -> str:
    """Return why this stage and the others of the preset, trained or not yet, cannot form a cascade; "" if they can."""
    from imagen_jax.config.validation import validate, validate_cascade
    from imagen_jax.stage_dir import directory
    from imagen_jax.storage import files

    def as_trained(other: StageConfig) -> StageConfig:
        place = location(options.workdir, "--workdir") / other.name
        if files.exists(place / directory.CONFIG_FILE):
            return directory.read_config(place)
        return dataclasses.replace(other, text=config.text)

    try:
        validate(config)
    except ValueError:
        return ""  # training says it
    found = stages.of_preset(options.preset)
    try:
        validate_cascade([config if each.name == options.stage else as_trained(each) for each in found])
    except ValueError as error:
        return str(error)
    return ""


def next_commands(options: Options, args: list[str]) -> list[str]:
    """Commands for the stages of the preset that are not trained yet, and one that samples."""
    kept = [
        word
        for name, values in options_given(args)
        if name.startswith(("data.", "text."))
        for word in (f"--{name}", *values)
    ]
    workdir = location(options.workdir, "--workdir")
    where = ["--workdir", str(options.workdir)]
    following = [
        ("train", ["--preset", options.preset, "--stage", stage.name, *where, *kept])
        for stage in stages.of_preset(options.preset)
        if not (workdir / stage.name).exists()
    ]
    following.append(("sample", [*where, "--prompts", "a caption"]))
    return [f"  {commands.typed(command)} {shlex.join(words)}" for command, words in following]


def parse(args: list[str]) -> tuple[Options, StageConfig]:
    options, config = parsing.parse_stage(Options, __doc__, args)
    asked, fixed = flat(config), flat(distilled.with_sampling(config))
    for name, _ in options_given(args):
        field = name.replace("-", "_")
        is_overridden = field.startswith("sampling.") and asked.get(field) != fixed.get(field)
        rule = f"be left out of a stage distilled to {config.distilled.steps} steps, where it is {fixed.get(field)}"
        checks.require(not is_overridden, f"--{name}", rule, asked.get(field))
    return options, config
