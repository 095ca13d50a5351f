"""A cascade that trains in minutes on two CPU cores: single shapes, 16x16 -> 64x64.

bash scripts/train_quickstart.sh
"""

import dataclasses

from imagen_jax.config import (
    DataConfig,
    EfficientUNetConfig,
    OptimConfig,
    ProcessConfig,
    RunConfig,
    SamplingConfig,
    StageConfig,
    TextConfig,
    UNetConfig,
)

TEXT = TextConfig(encoder="all-MiniLM-L6-v2", width=384, length=24)
DATA = DataConfig(path="datasets/shapes_single")
# Networks this narrow learn outlines sooner with prediction x than with v, which contains all of the noise.
PROCESS = ProcessConfig(prediction="x", loss_weight="min_snr", min_snr_floor=1.0)
OPTIM = OptimConfig(optimizer="muon", learning_rate=2.5e-3, warmup_steps=50, b2=0.99, ema_decay=0.99)

# Compiling validation and samples would take a good part of these short runs.
NO_MONITORING = {"validate_every": 0, "sample_every": 0}


def get_config() -> tuple[StageConfig, ...]:
    base = StageConfig(
        name="base",
        image_size=16,
        network=UNetConfig(
            channels=(16, 32, 64),
            num_res_blocks=(1, 1, 1),
            attention=(False, True, True),
            embedding=64,
            head_dim=16,
        ),
        process=PROCESS,
        sampling=SamplingConfig(sampler="unipc", steps=16, guidance_scale=3.0, threshold="static"),
        text=TEXT,
        data=DATA,
        # Many small steps: the number of steps teaches outlines, more than that of pictures.
        optim=dataclasses.replace(OPTIM, decay_steps=5600, batch_size=8),
        run=RunConfig(num_steps=5600, checkpoint_every=800, log_every=50, **NO_MONITORING),
    )
    super_resolution = StageConfig(
        name="sr64",
        image_size=64,
        low_res_size=16,
        network=EfficientUNetConfig(
            stem_channels=16,
            channels=(24, 48, 96),
            num_res_blocks=(1, 1, 1),
            self_attention=(False, False, True),
            cross_attention=(False, False, False),
            embedding=64,
            num_heads=4,
        ),
        process=dataclasses.replace(PROCESS, max_aug_level=0.5),
        sampling=SamplingConfig(
            sampler="unipc", steps=10, guidance_scale=2.0, threshold="static", aug_level=0.2
        ),
        text=TEXT,
        data=DATA,
        optim=dataclasses.replace(OPTIM, decay_steps=1000, batch_size=8),
        run=RunConfig(num_steps=1000, checkpoint_every=200, log_every=20, **NO_MONITORING),
    )
    return base, super_resolution
