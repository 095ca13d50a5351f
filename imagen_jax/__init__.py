"""Imagen in JAX: text-to-image by cascaded pixel diffusion.

The functions here are the whole public surface for sampling; see the README for training. Importing
this package loads JAX and Flax alone: tokenizers, data sets and checkpoints are loaded on first use.
"""

import importlib

from imagen_jax.cascade import sample_cascade
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.unet import UNet
from imagen_jax.stage import Stage, image_keys, sample_stage
from imagen_jax.structs import Cond, TextCond

__version__ = "0.1.0"

_LAZY = {
    "TextEncoder": "imagen_jax.text.encoder",
    "load_stage": "imagen_jax.training.checkpoint",
    "load_cascade": "imagen_jax.training.checkpoint",
}

__all__ = [
    "Cond",
    "EfficientUNet",
    "Stage",
    "TextCond",
    "TextEncoder",
    "UNet",
    "image_keys",
    "load_cascade",
    "load_stage",
    "sample_cascade",
    "sample_stage",
]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
