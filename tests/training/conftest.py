"""Training on one device."""

import jax
import pytest

from imagen_jax import sharding


@pytest.fixture(scope="module")
def one_device(compiled_once):
    """Training in this process takes one device, as in processes that tests start; for eight it compiles longer."""
    make_mesh = sharding.make_mesh
    with pytest.MonkeyPatch.context() as patch:
        alone = lambda *args, **options: make_mesh(*args, **options | {"devices": jax.devices()[:1]})
        patch.setattr(sharding, "make_mesh", alone)
        yield
