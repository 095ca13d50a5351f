"""Splits of icons: subjects that training never sees, and pairs of style and subject that it never sees together.

Everything follows from hashes of code points and styles. So a subject stays in its split when sets are added, but pairs
move from training to a held-out split once enough other styles have the subject, and from `validation` to training
where more styles are needed than before.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections import defaultdict
from collections.abc import Iterable

from imagen_jax import checks
from imagen_jax.prepare.icons import codes

TRAIN, VALIDATION, SUBJECTS, PAIRS = "train", "validation", "unseen_subjects", "unseen_pairs"
MIN_STYLES = 3  # in which training shows the subject of a pair that it does not


@dataclasses.dataclass(frozen=True)
class Fractions:
    """Fractions of subjects, and of pairs of the remaining subjects with each style, that are held out."""

    unseen_subjects: float
    unseen_pairs: float
    validation: float

    def __post_init__(self):
        for name in ("unseen_subjects", "unseen_pairs", "validation"):
            checks.number(f"--{name.replace('_', '-')}-fraction", getattr(self, name), "[0, 1)")
        names = "--unseen-pairs-fraction and --validation-fraction"
        got = checks.Verbatim(f"{self.unseen_pairs} and {self.validation}")
        checks.require(self.unseen_pairs + self.validation < 1, names, "be below 1 together", got, "lower them")


def split_of(pictures: Iterable[tuple[str, str]], fractions: Fractions) -> dict[tuple[str, str], str]:
    """Return the split of each picture (style, code point).

    Variants of a subject (see `codes.family`) are in the same split. A pair is held out only if training shows its
    subject in `MIN_STYLES` other styles; for `validation`, where there are fewer styles in all, in each of the others.
    """
    pictures = list(pictures)
    styles = defaultdict(set)
    for style, code in pictures:
        styles[code].add(style)
    num_others = len({style for style, _ in pictures}) - 1
    needed = {TRAIN: 0, PAIRS: MIN_STYLES, VALIDATION: min(MIN_STYLES, num_others)}
    found = {}
    for style, code in pictures:
        chosen = _chosen(style, code, fractions)
        num_seen = sum(_chosen(one, code, fractions) == TRAIN for one in styles[code])
        if _place("subject", codes.family(code)) < fractions.unseen_subjects:
            chosen = SUBJECTS
        elif num_seen < needed[chosen]:
            chosen = TRAIN
        found[style, code] = chosen
    return found


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
