"""Training on one device, and the metrics of a step."""

import jax
import numpy as np
import pytest

from imagen_jax import sharding
from imagen_jax.diffusion import losses


@pytest.fixture(scope="module")
def one_device(compiled_once):
    """Training in this process takes one device, as in processes that tests start; for eight it compiles longer."""
    make_mesh = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        alone = lambda *args, **options: make_mesh(*args, **options | {"devices": jax.devices()[:1]})
        patch.setattr(sharding, "make_mesh", alone)
        yield


def metrics(loss, logsnr, skipped=0):
    """The metrics of a step with one image of each of these losses and levels."""
    sums, counts = losses.by_logsnr(jax.numpy.asarray(loss, "float32"), jax.numpy.asarray(logsnr, "float32"))
    names = [f"loss_logsnr/{bucket}" for bucket in losses.BUCKETS]
    scalars = {"grad_norm": 1.0, "learning_rate": 0.1, "ema_distance": 0.5}
    return scalars | {
        "loss": jax.numpy.asarray(np.mean(loss)),
        "skipped": skipped,
        "sums": dict(zip(names, zip(sums, counts, strict=True), strict=True)),
    }
