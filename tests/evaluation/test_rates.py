"""Shares of right answers, and those of chance."""

from imagen_jax.evaluation.rates import format_table, rates


def score(picture, claim):
    """Pictures and claims are numbers; "even" is stated by even claims alone."""
    return {"equal": picture == claim} | ({"even": picture % 2 == 0} if claim % 2 == 0 else {})


def test_rates_are_those_of_the_captions_that_state_a_category():
    result = rates([0, 1, 2, 4], [0, 1, 2, 3], score, ("even", "equal", "other"))
    assert list(result) == ["even", "equal"]
    assert result["equal"] == {"right": 0.75, "shuffled": 0.0, "num": 4}
    assert result["even"]["right"] == 1 and result["even"]["num"] == 2


def test_shuffled_pictures_are_those_of_other_captions():
    same = rates([5] * 4, [5] * 4, score, ("equal",))["equal"]
    assert same == {"right": 1.0, "shuffled": 1.0, "num": 4}
    # Every other picture is tried once: 3 of 3 permutations of 4 pictures without one in place.
    halves = rates([0, 0, 1, 1], [0, 0, 1, 1], score, ("equal",))["equal"]
    assert halves["right"] == 1 and abs(halves["shuffled"] - 1 / 3) < 1e-9


def test_table():
    result = rates([0, 1], [0, 3], score, ("equal", "even"))
    assert format_table(result).splitlines() == [
        "| category | right % | shuffled % | prompts |", "|---|---:|---:|---:|",
        "| equal | 50.0 | 0.0 | 2 |", "| even | 100.0 | 0.0 | 1 |",
    ]  # fmt: skip
    assert "| equal | 100.0 | - | 1 |" in format_table(rates([3], [3], score, ("equal",)))
