"""The whole of shapes: one to three objects, relations and counts, 32x32 -> 64x64.

The steps below take an hour on two CPU cores, which is a beginning only: see docs/results.md.

python scripts/prepare_data.py --shapes full --output datasets/shapes
python scripts/train.py --preset shapes --stage base --workdir runs/shapes
python scripts/train.py --preset shapes --stage sr64 --workdir runs/shapes
python scripts/evaluate.py --workdir runs/shapes --data datasets/shapes
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

# Flat saturated colors fill these pictures. The dynamic threshold rescales the whole picture and would turn white to
# grey; use static clipping.
TEXT = TextConfig(encoder="all-MiniLM-L6-v2", width=384, length=40)
DATA = DataConfig(path="datasets/shapes")
# Networks this narrow learn outlines sooner with prediction x than with v, which contains all of the noise.
PROCESS = ProcessConfig(prediction="x", loss_weight="min_snr", min_snr_floor=1.0)
OPTIM = OptimConfig(
    optimizer="muon", learning_rate=2.5e-3, warmup_steps=50, b2=0.99, batch_size=8, ema_decay=0.995
)


def get_config() -> tuple[StageConfig, ...]:
    base = StageConfig(
        name="base",
        image_size=32,
        network=UNetConfig(
            channels=(16, 32, 64, 96),
            num_res_blocks=(1, 1, 1, 1),
            attention=(False, True, True, True),
            embedding=128,
            head_dim=16,
        ),
        process=PROCESS,
        sampling=SamplingConfig(sampler="unipc", steps=16, guidance_scale=3.0, threshold="static"),
        text=TEXT,
        data=DATA,
        optim=dataclasses.replace(OPTIM, decay_steps=10_000),
        run=RunConfig(num_steps=10_000, checkpoint_every=500, validate_every=500, sample_every=1000),
    )
    super_resolution = StageConfig(
        name="sr64",
        image_size=64,
        low_res_size=32,
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
            sampler="unipc", steps=10, guidance_scale=2.0, threshold="static", aug_level=0.1
        ),
        text=TEXT,
        data=DATA,
        optim=dataclasses.replace(OPTIM, decay_steps=1500),
        run=RunConfig(num_steps=1500, checkpoint_every=250, validate_every=250, sample_every=500),
    )
    return base, super_resolution
