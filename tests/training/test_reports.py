"""What a run tells its user at its start and its end."""

import dataclasses
import warnings

import pytest

from imagen_jax.config import OptimConfig, RunConfig, StageConfig
from imagen_jax.training import reports


@pytest.mark.parametrize(
    ("num_steps", "warmup", "decay", "words"),
    [
        (1000, 10_000, 0, ["--optim.warmup-steps", "got 10000", "only reaches 1e-05 (10 %)", "steps 50."]),
        (1000, 1000, 0, []),
        (1000, 1001, 0, ["only reaches 0.0001 (99.9 %)"]),
        (1, 50, 0, ["only reaches 2e-06 (2 %)", "give --optim.warmup-steps 1."]),
        (1000, 2000, 5000, ["only reaches 5e-05 (50 %)"]),
        (2000, 100, 1500, ["--optim.decay-steps", "the last 500 steps is 0", "give --optim.decay-steps 2000"]),
        (1000, 999, 0, []),
        (1000, 0, 0, []),
        (1000, 100, 1000, []),
        (1000, 100, 5000, []),
        (1, 0, 0, []),
    ],
)  # fmt: skip
def test_a_rate_that_is_never_reached_or_falls_to_zero_is_told(num_steps, warmup, decay, words):
    optim = OptimConfig(learning_rate=1e-4, warmup_steps=warmup, decay_steps=decay)
    config = dataclasses.replace(StageConfig(), optim=optim, run=RunConfig(num_steps=num_steps))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        reports.warn_of_learning_rate(config)
    assert len(told) == bool(words)
    for word in words:
        assert word in str(told[0].message)
