"""Train a recogniser of icons on real pictures, to evaluate generated ones.

  imagen-jax recogniser --data datasets/icons --output runs/recogniser
  imagen-jax evaluate --workdir runs/icons --data datasets/icons --split unseen_pairs --metrics recognition \\
    --recogniser runs/recogniser

The data set must be one of icons (--icons of prepare). The recogniser names the subject and the style of a picture; it
is trained on the split train, each picture once an epoch. Prints how often it names real pictures right that it was not
trained on: those of validation, and of unseen_pairs, whose subjects it has seen in other styles alone.
"""

import dataclasses
import logging
from pathlib import Path

from imagen_jax.cli import commands, parsing
from imagen_jax.storage import files

_LOGGER = logging.getLogger(__name__)

ROOM = 2**24  # bytes that both files need at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    data: Path
    """A data set of icons."""
    output: Path
    """Directory for the recogniser."""
    epochs: int = 30
    """Passes over the pictures of train."""
    seed: int = 0
    """Seed of parameters, order and augmentation."""


def main(options: Options) -> None:
    from imagen_jax import checks, compilation
    from imagen_jax.data import sources
    from imagen_jax.evaluation import recogniser
    from imagen_jax.evaluation.recogniser_training import accuracy, read_pictures, train
    from imagen_jax.prepare.icons import splits

    checks.whole("--epochs", options.epochs, 1, 10_000)
    checks.seed(options.seed, name="--seed")
    files.check_directory(options.output, "--output", needed=ROOM, names=recogniser.FILES)
    if any(files.exists(options.output / name) for name in recogniser.FILES):
        raise ValueError(f"--output must have no recogniser yet; got {options.output}: name another.")
    held_out = [split for split in sources.splits(options.data) if split in (splits.VALIDATION, splits.PAIRS)]
    pictures, *tests = (read_pictures(options.data, split) for split in (splits.TRAIN, *held_out))
    num_subjects, num_styles = len(set(pictures.subjects)), len(set(pictures.styles))
    _LOGGER.info(f"{len(pictures.images)} pictures of {num_subjects} subjects in {num_styles} styles")
    compilation.use_compilation_cache()
    trained = train(pictures, epochs=options.epochs, seed=options.seed)
    rows = {split: accuracy(trained, real) for split, real in zip(held_out, tests, strict=True)}
    dataclasses.replace(trained, accuracy=rows).save(options.output)
    print(recogniser.accuracy_table(rows))
    command = f"{commands.typed('evaluate')} --metrics recognition --recogniser {options.output}"
    _LOGGER.info(f"Wrote {options.output}. Next:\n  {command} ...")


def parse(args: list[str]) -> Options:
    return parsing.parse(Options, __doc__, args)
