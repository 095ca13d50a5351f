"""A record of a picture."""


import dataclasses

import numpy as np

from imagen_jax.config import SamplingConfig
from imagen_jax.generate import records

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
RECORD = records.Record(
    prompt='ein "Stern" ⭐\u2028\n',
    seed=2**32 - 1,
    sampling={"base": SamplingConfig(steps=7, eta=0.1), "sr16": SamplingConfig(guidance_scale=1 / 3)},
    negative="",
    size=(6, 4),
    outpaint=(25, 0, 0, 10),
    image=records.InputFile("/photos/a b.png", "ab" * 32),
    workdir="/runs/\udcff",  # a name that is not UTF-8
    checkpoints={"base": 5600, "sr16": 0},
    encoder="cd" * 16,
    batch_size=8,
    row=7,
    fsdp=2,
    devices="8 x cpu",
    versions={"imagen_jax": "0.1.0", "jax": "0.10"},
)
SMALL = dataclasses.replace(
    RECORD, negative=None, outpaint=None, image=None, sampling={"base": SamplingConfig()}
)
SMALL = dataclasses.replace(SMALL, checkpoints={"base": "0f" * 32}, workdir="emoji", prompt="", seed=0, row=0)
