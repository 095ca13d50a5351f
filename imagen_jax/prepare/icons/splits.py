"""Splits of icons: subjects that training never sees, and pairs of style and subject that it never sees together.

Everything follows from hashes of code points and styles. So a picture stays in its split when sets are added, except
that pairs move from training to a held-out split once three other styles have the subject.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable

from imagen_jax.prepare.icons import codes

TRAIN, VALIDATION, SUBJECTS, PAIRS = "train", "validation", "unseen_subjects", "unseen_pairs"
MIN_STYLES = 3  # in which training shows the subject of a pair that it does not


@dataclasses.dataclass(frozen=True)
class Fractions:
    """Fractions of subjects, and of pairs of the remaining subjects with each style, that are held out."""

    unseen_subjects: float = 0.06
    unseen_pairs: float = 0.08
    validation: float = 0.03

    def __post_init__(self):
        for name in ("unseen_subjects", "unseen_pairs", "validation"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                option = name.replace("_", "-")
                raise ValueError(
                    f"--{option}-fraction must be at least 0 and below 1; got {value}: lower it."
                )
        if self.unseen_pairs + self.validation >= 1:
            raise ValueError(
                "--unseen-pairs-fraction and --validation-fraction must be below 1 together; got "
                f"{self.unseen_pairs} and {self.validation}: lower them."
            )


def split_of(pictures: Iterable[tuple[str, str]], fractions: Fractions) -> dict[tuple[str, str], str]:
    """Return the split of each picture (style, code point).

    Variants of a subject (see `codes.family`) share its fate. A pair is held out, for `unseen_pairs` or for
    `validation`, only if training shows its subject in `MIN_STYLES` other styles.
    """
    pictures = list(pictures)
    styles = defaultdict(set)
    for style, code in pictures:
        styles[code].add(style)
    return {
        (style, code): _split(style, code, styles[code], fractions)
        for style, code in pictures
    }  # fmt: skip


def _split(style: str, code: str, styles: set[str], fractions: Fractions) -> str:
    if _place("subject", codes.family(code)) < fractions.unseen_subjects:
        return SUBJECTS
    chosen = _chosen(style, code, fractions)
    if chosen == TRAIN or sum(_chosen(one, code, fractions) == TRAIN for one in styles) < MIN_STYLES:
        return TRAIN
    return chosen


def _chosen(style: str, code: str, fractions: Fractions) -> str:
    """Return the split of a pair by its hash alone."""
    place = _place("pair", style, codes.family(code))
    if place < fractions.unseen_pairs:
        return PAIRS
    return VALIDATION if place < fractions.unseen_pairs + fractions.validation else TRAIN


def _place(*words: str) -> float:
    """Return a number in [0, 1) that the words determine."""
    return int.from_bytes(digest(*words)[:8], "big") / 2**64


def digest(*words: str) -> bytes:
    return hashlib.sha256("\0".join(words).encode()).digest()
