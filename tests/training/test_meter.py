"""Metrics between two log lines: means over the steps that were kept."""

import dataclasses

import numpy as np

from imagen_jax.config import RunConfig
from imagen_jax.training import meter as meters
from tests.training.conftest import metrics

# --- meter ----------------------------------------------------------------------------------------


def settings(config, **run):
    return dataclasses.replace(config, run=dataclasses.replace(RunConfig(), **run))


def test_means_are_over_the_steps_that_were_kept(tiny_configs):
    meter = meters.Meter(settings(tiny_configs[0]), 10)
    meter.add(metrics([1.0, 3.0], [-7, 0]), 0)
    meter.add(metrics([np.nan, 1.0], [-7, 0], skipped=1), 2)
    meter.add(metrics([2.0, 6.0], [0, 7]), 1)
    values, skipped, hopeless = meter.read(13)
    assert (values["loss"], values["skipped"], skipped, hopeless, values["undecodable"]) == (
        3,
        1,
        [12],
        None,
        3,
    )
    by_level = {key.split("/")[1]: value for key, value in values.items() if key.startswith("loss_logsnr/")}
    assert by_level == {"..-6": 1.0, "-2..2": 2.5, "6..": 6.0}
    meter.add(metrics([4.0], [0]), 0)
    assert meter.read(14)[0]["loss"] == 4


def test_too_many_skipped_in_a_row_are_hopeless_also_over_two_readings(tiny_configs):
    meter = meters.Meter(settings(tiny_configs[0], max_skipped=2), 0)
    for skipped in (0, 1, 1):
        meter.add(metrics([1.0], [0], skipped), 0)
    assert meter.read(3)[2] is None
    meter.add(metrics([1.0], [0], 1), 0)
    assert meter.read(4)[2] == range(2, 5)
