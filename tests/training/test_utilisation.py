"""Utilisation: the work of an image over the peak of the devices."""

import dataclasses

import pytest

from imagen_jax import chips
from imagen_jax.training import meter as meters
from imagen_jax.training import utilisation
from tests.training.conftest import metrics

# --- meter ----------------------------------------------------------------------------------------


def test_utilisation_is_the_work_over_the_peak(tiny_configs, monkeypatch):
    chip = dataclasses.replace(chips.CHIPS["v4"], flops=1e9)
    monkeypatch.setattr(chips, "of_kind", lambda kind: chip)
    monkeypatch.setattr(utilisation, "model_flops_per_image", lambda config: 4e6)  # tested with the plans
    per_image = utilisation.utilisation_per_image_s(tiny_configs[0], 8)
    assert per_image == pytest.approx(4e6 / 8e9)
    meter = meters.Meter(tiny_configs[0], 0, per_image)
    meter.add(metrics([1.0], [0]), 0)
    values = meter.read(1)[0]
    assert values["mfu"] == pytest.approx(values["images_per_s"] * per_image)
