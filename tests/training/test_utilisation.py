"""Utilisation: the work of an image over the peak of the devices."""

import dataclasses

import jax
import numpy as np
import pytest

from imagen_jax import chips
from imagen_jax.diffusion import losses
from imagen_jax.training import meter as meters
from imagen_jax.training import utilisation

# --- meter ----------------------------------------------------------------------------------------


def metrics(loss, logsnr, skipped=0):
    """Those of a step with one image of each of these losses and levels."""
    sums, counts = losses.by_logsnr(jax.numpy.asarray(loss, "float32"), jax.numpy.asarray(logsnr, "float32"))
    names = [f"loss_logsnr/{bucket}" for bucket in losses.BUCKETS]
    scalars = {"grad_norm": 1.0, "learning_rate": 0.1, "ema_distance": 0.5}
    return scalars | {
        "loss": jax.numpy.asarray(np.mean(loss)),
        "skipped": skipped,
        "sums": dict(zip(names, zip(sums, counts, strict=True), strict=True)),
    }


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
