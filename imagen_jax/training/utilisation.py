"""Model FLOPs of training, and the devices' utilisation that follows from them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax import chips, sharding, stage, tracing
from imagen_jax.config import StageConfig


def batch_shapes(config: StageConfig, rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a training batch of `rows` images; see `stage.image_losses`."""
    side, text = config.train_size, config.text
    return {
        "x": jax.ShapeDtypeStruct((rows, side, side, config.image_channels), jnp.float32),
        "text": jax.ShapeDtypeStruct((rows, text.length, text.width), jnp.float32),
        "text_mask": jax.ShapeDtypeStruct((rows, text.length), bool),
    }


def model_flops_per_image(config: StageConfig) -> int:
    """Return the FLOPs of training on one image: three times those of the traced loss, without recomputation."""
    one = dataclasses.replace(config, run=dataclasses.replace(config.run, remat="none"))
    params = jax.eval_shape(lambda: stage.init(one, jax.random.key(0)))

    def forward(params: Any, batch: Any) -> jax.Array:
        return stage.loss(params, one, batch, stage.draw(one, jax.random.key(0), 1))

    with sharding.use_mesh(sharding.make_mesh(devices=jax.local_devices()[:1])):
        return 3 * tracing.flops(tracing.trace(forward, params, batch_shapes(one, 1)))


def utilisation_per_image_s(config: StageConfig, num_devices: int) -> float | None:
    """Return the share of the devices' peak rate that one image per second uses.

    Model FLOPs (forward and backward, nothing computed twice) over the peak rate of bfloat16 products of all devices;
    None if that is not known.
    """
    chip = chips.of_kind(jax.devices()[0].device_kind)
    return None if chip is None else model_flops_per_image(config) / (chip.flops * num_devices)
