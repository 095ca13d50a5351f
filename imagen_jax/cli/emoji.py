"""Make a data set for training from a colour emoji font: a captioned picture of each glyph.

  imagen-jax emoji --output datasets/emoji --validation-fraction 0.03

The caption of a glyph is its Unicode name in lower case ("smiling face with sunglasses"). Sequences (skin tones,
professions, families, keycaps) are named where their name follows from their parts; others, such as national flags, are
omitted. Mind the font's license if you share the pictures.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from PIL import features

from imagen_jax import progress
from imagen_jax.cli import parsing, prepare
from imagen_jax.data import sources
from imagen_jax.prepare import fonts, output

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Options:
    output: Path
    """Directory of the new data set; an existing one is never overwritten."""
    font: Path | None = None
    """A colour emoji font with bitmap glyphs; by default the system's NotoColorEmoji.ttf."""
    size: int = 128
    """Side of the square pictures, in pixels."""
    validation_fraction: float = 0.0
    """Fraction of the pictures for validation, chosen by their bytes."""
    test_fraction: float = 0.0
    """Fraction of the pictures for testing, chosen by their bytes."""


def main(options: Options) -> None:
    name = output.name_of(options.output)
    sources.check_free(options.output)
    output.resolved(options.output)  # checks before any work that the data set can be written
    plan = fonts.plan(options.font, options.size, name, options.validation_fraction, options.test_fraction)
    if not features.check("raqm"):
        _LOGGER.warning("Pillow lacks raqm here: single characters only, no skin tones, professions, families.")
    shown = lambda done, total, before: progress.over(done, total, "fonts", "drawing", done=before)
    prepare.write(plan, options.output, plan.settings, shown)


def parse(args: list[str]) -> Options:
    return parsing.parse(Options, __doc__, args)
