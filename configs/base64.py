"""The paper's 64x64 base stage in four sizes: `--preset base64:2b` (or 1b, 500m, 300m), improved or paper.

  python scripts/plan.py --preset base64:2b --topology v5e:16x16 --run.fsdp 16
  python scripts/train.py --preset base64:2b,paper --stage base --workdir runs/imagen --data.path datasets/mine

The paper gives the 2B configuration alone (F.1): 512 channels. The others have the same levels with
fewer channels. Parameters, with a projection of the text to the network's own width:

  300m  192 channels    320M
  500m  256 channels    568M   (NeMo's "500m" has the same channels)
  1b    352 channels  1,089M   (level 3 rounded up to whole heads of 64)
  2b    512 channels  2,263M   (the paper says "2B" and no exact number)
"""

import dataclasses
from typing import Literal

from imagen_jax.config import (
    DataConfig,
    OptimConfig,
    ProcessConfig,
    RunConfig,
    SamplingConfig,
    StageConfig,
    TextConfig,
    UNetConfig,
)

CHANNELS = {
    "300m": (192, 384, 576, 768),
    "500m": (256, 512, 768, 1024),
    "1b": (352, 704, 1088, 1408),
    "2b": (512, 1024, 1536, 2048),
}
# Devices of 16 GB over which parameters and optimiser have to be spread, so that batch 2048 fits 256 of them.
FSDP = {"300m": 1, "500m": 4, "1b": 8, "2b": 16}
# The paper does not say how many tokens: captions like those of COCO have fewer.
TEXT = TextConfig(encoder="t5-v1_1-xxl", width=4096, length=128, dtype="bfloat16")


def get_config(
    size: Literal["300m", "500m", "1b", "2b"] = "2b", recipe: Literal["improved", "paper"] = "improved"
) -> tuple[StageConfig, ...]:
    channels = CHANNELS[size]
    improved = StageConfig(
        name="base",
        image_size=64,
        network=UNetConfig(channels=channels, embedding=4 * channels[0]),
        # At 64 pixels the shifted cosine is the cosine; the bias is that of Kingma & Gao (2023) for 64 pixels.
        process=ProcessConfig(prediction="v", schedule="cosine", loss_weight="sigmoid", sigmoid_bias=2.0),
        sampling=SamplingConfig(sampler="dpmpp_2m", steps=32, guidance_scale=5.0),
        text=TEXT,
        data=DataConfig(path="datasets/images"),
        optim=OptimConfig(optimizer="adamw", b2=0.99, batch_size=2048),
        run=RunConfig(fsdp=FSDP[size], remat="full"),
    )
    if recipe == "improved":
        return (improved,)
    return (
        dataclasses.replace(
            improved,
            process=ProcessConfig(prediction="eps", schedule="cosine", loss_weight="plain"),
            # Steps are not stated in the paper; 256 are Imagen Video's. Guidance 1.35 is best for FID, 5 for looks.
            sampling=SamplingConfig(sampler="ddpm", steps=256, guidance_scale=5.0),
            optim=OptimConfig(optimizer="adafactor", clip_norm=0.0, batch_size=2048),
        ),
    )
