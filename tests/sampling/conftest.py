"""Keys, pictures and stages of random parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import Stage, image_keys, resize, stage
from imagen_jax import config as C
from tests.conftest import random_array

KEYS = image_keys(3, 7)


def with_random_params(config: C.StageConfig) -> Stage:
    shapes = jax.eval_shape(lambda: stage.init(config, jax.random.key(0)))
    rng = np.random.default_rng(1)
    return Stage(params=jax.tree.map(lambda leaf: random_array(rng, leaf.shape), shapes), config=config)


@pytest.fixture(scope="module")
def picture():
    """Seven smooth pictures of 16x16."""
    coarse = np.random.default_rng(5).uniform(-0.9, 0.9, (7, 4, 4, 3))
    return jnp.asarray(resize.bilinear(coarse, 16))
