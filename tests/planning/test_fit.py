"""Settings in which a stage fits: other ways to run the same step."""

import pytest

from imagen_jax.planning import fit
from imagen_jax.planning.estimate import estimate


def test_settings_keep_the_batch_and_take_less_memory_in_turn(tiny_configs):
    found = list(fit.settings(tiny_configs[0], "train", 2, memory=2**40))
    flags, configs = zip(*found, strict=True)
    assert flags[0] == f"--fsdp 1 --run.remat {tiny_configs[0].run.remat} --optim.accumulation 1"
    assert len(set(flags)) == len(flags) and {config.optim.batch_size for config in configs} == {8}
    assert [config.optim.accumulation for config in configs] == [1, 1, 2, 2, 4, 4]
    assert all(f"--optim.accumulation {config.optim.accumulation}" in flag for flag, config in found)


@pytest.mark.slow
def test_the_nearest_is_the_first_that_fits(tiny_configs):
    peak = estimate(tiny_configs[0], "train", 2).peak_bytes
    first = next(fit.settings(tiny_configs[0], "train", 2, memory=2**40))[0]
    assert fit.nearest(tiny_configs[0], "train", 2, memory=2 * peak) == first
    assert fit.nearest(tiny_configs[0], "train", 2, memory=1000) is None
    assert fit.advice(tiny_configs[0], "train", 2, 1000, None).startswith("no setting fits, however many")
