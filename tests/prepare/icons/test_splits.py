import itertools
from collections import Counter, defaultdict

import pytest

from imagen_jax.prepare.icons import codes, splits

STYLES = ["noto", "noto-v1", "fluent", "flat", "fx"]
SUBJECTS = [f"{0x1F400 + number:x}" for number in range(600)]
SHARES = splits.Fractions(0.06, 0.08, 0.03)
PAIRS = list(itertools.product(STYLES, SUBJECTS))


@pytest.fixture(scope="module")
def split_of():
    return splits.split_of(PAIRS, SHARES)


def test_unseen_subjects_are_unseen_in_all_styles(split_of):
    by_split = defaultdict(set)
    for (_, code), split in split_of.items():
        by_split[split].add(code)
    assert not by_split[splits.SUBJECTS] & (
        by_split[splits.TRAIN] | by_split[splits.PAIRS] | by_split[splits.VALIDATION]
    )
    assert 0.04 < len(by_split[splits.SUBJECTS]) / len(SUBJECTS) < 0.08


def test_both_sides_of_unseen_pairs_are_seen(split_of):
    seen = defaultdict(set)
    for (style, code), split in split_of.items():
        if split == splits.TRAIN:
            seen[code].add(style)
    held_out = [pair for pair, split in split_of.items() if split == splits.PAIRS]
    assert 0.05 < len(held_out) / len(PAIRS) < 0.09
    assert set(Counter(style for style, _ in held_out)) == set(STYLES)
    assert all(len(seen[code] - {style}) >= splits.MIN_STYLES for style, code in held_out)


def test_splits_are_stable_when_sets_and_subjects_come(split_of):
    few = splits.split_of([pair for pair in PAIRS if pair[0] != "fx"][::2], SHARES)
    for pair, split in few.items():
        assert split_of[pair] == split or (
            split == splits.TRAIN and split_of[pair] in (splits.PAIRS, splits.VALIDATION)
        )
    two = splits.split_of([pair for pair in PAIRS if pair[0] in ("fx", "noto")], SHARES)
    assert set(two.values()) == {splits.TRAIN, splits.SUBJECTS, splits.VALIDATION}  # too few styles for pairs
    one = splits.split_of([pair for pair in PAIRS if pair[0] == "fx"], SHARES)
    assert set(one.values()) == {splits.TRAIN, splits.SUBJECTS, splits.VALIDATION}


def test_variants_share_a_split():
    runners = ["1f3c3", "1f3c3-200d-2640", "1f3c3-200d-2642", "1f3c3-1f3fd"]
    for fraction in (0.1, 0.3, 0.5, 0.7, 0.9):
        found = splits.split_of(itertools.product(STYLES, runners), splits.Fractions(fraction, 0.4, 0.1))
        assert len({split == splits.SUBJECTS for split in found.values()}) == 1
        for style in STYLES:
            assert len({found[style, code] for code in runners}) == 1
    assert len({codes.family(code) for code in runners}) == 1


@pytest.mark.parametrize(
    "fractions, message",
    [
        ((1.0, 0.1, 0.1), r"--unseen-subjects-fraction must be in \[0, 1\); got 1.0"),
        ((0.1, -0.1, 0.1), r"--unseen-pairs-fraction must be in \[0, 1\); got -0.1"),
        ((0.1, 0.1, float("nan")), "--validation-fraction must be a finite number; got nan"),
        ((0.1, 0.5, 0.5), "must be below 1 together; got 0.5 and 0.5"),
    ],
)
def test_wrong_fractions_are_refused(fractions, message):
    with pytest.raises(ValueError, match=message):
        splits.Fractions(*fractions)
