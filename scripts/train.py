"""Trains one stage of a preset, from the start or from its newest checkpoint.

  python scripts/train.py --preset quickstart --stage base --workdir runs/quickstart
  python scripts/train.py --preset quickstart --stage base --workdir runs/mine --data.path datasets/mine

Every option of the preset can be changed, for example --optim.batch-size 64 (see --help). Ctrl-C
leaves a checkpoint, and the same command continues from it. On several hosts start it on each: see
docs/pods.md.
"""

import dataclasses
import signal
from pathlib import Path

from imagen_jax import cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    preset: str
    """Name of a file in configs/ without .py, or the path of such a file."""
    stage: str
    """Name of the stage in the preset."""
    workdir: Path
    """Directory of the cascade; the stage goes to a sub-directory of its name."""


def main(parsed) -> int:
    options, config = parsed
    from imagen_jax import parallel

    parallel.initialize()
    parallel.use_compilation_cache()  # a run that was ended need not compile again
    from imagen_jax.training.loop import train

    stopped_by = train(config, options.workdir).stopped_by
    return 0 if stopped_by is None else 128 + signal.Signals(stopped_by)


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse_stage(Options, __doc__))
