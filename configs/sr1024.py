"""The paper's 256 -> 1024 super-resolution stage: `--preset sr1024`, or sr1024:paper, sr1024:400m.

  python scripts/plan.py --preset sr1024 --topology v4:4x4x8
  python scripts/train.py --preset sr1024 --stage sr1024 --workdir runs/imagen --data.path datasets/mine

Trained on random 256x256 crops (64x64 of the low-res image), sampled full-frame: it has no self-attention,
only attention over the text.

The paper contradicts itself here: it calls this stage 400M, but prints the configuration of the 600M stage, which
without self-attention has 575M. The default is what is printed; "400m" has fewer of the widest blocks, 418M.
"""

import dataclasses
from typing import Literal

from imagen_jax.config import (
    DataConfig,
    EfficientUNetConfig,
    OptimConfig,
    ProcessConfig,
    RunConfig,
    SamplingConfig,
    StageConfig,
    TextConfig,
)

BLOCKS = {"printed": (2, 4, 8, 8), "400m": (2, 4, 8, 5)}
TEXT = TextConfig(encoder="t5-v1_1-xxl", width=4096, length=128, dtype="bfloat16")


def get_config(
    size: Literal["printed", "400m"] = "printed", recipe: Literal["improved", "paper"] = "improved"
) -> tuple[StageConfig, ...]:
    improved = StageConfig(
        name="sr1024",
        image_size=1024,
        low_res_size=256,
        crop_size=256,
        network=EfficientUNetConfig(
            num_res_blocks=BLOCKS[size],
            self_attention=(False, False, False, False),
            cross_attention=(False, False, False, True),
        ),
        # The bias moves with the schedule: 2 at 64 pixels, and 2 log(64 / 1024) to that.
        process=ProcessConfig(
            prediction="v", schedule="shifted_cosine", loss_weight="sigmoid", sigmoid_bias=-3.55
        ),
        sampling=SamplingConfig(sampler="dpmpp_2m", steps=16, guidance_scale=3.0, aug_level=0.1),
        text=TEXT,
        data=DataConfig(path="datasets/images"),
        optim=OptimConfig(optimizer="adamw", b2=0.99, batch_size=2048),
        run=RunConfig(fsdp=4, remat="save_convs"),
    )
    if recipe == "improved":
        return (improved,)
    return (
        dataclasses.replace(
            improved,
            process=ProcessConfig(prediction="eps", schedule="linear", loss_weight="plain"),
            # Neither steps nor guidance are stated in the paper; 128 are Imagen Video's.
            sampling=SamplingConfig(sampler="ddpm", steps=128, guidance_scale=5.0, aug_level=0.1),
            optim=OptimConfig(optimizer="adamw", b1=0.9, b2=0.999, clip_norm=0.0, batch_size=2048),
        ),
    )
