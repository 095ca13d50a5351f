"""The whole of shapes: one to three objects, relations and counts, 32x32 -> 64x64.

python scripts/prepare_data.py --shapes full --output datasets/shapes
python scripts/train.py --preset shapes --stage base --workdir runs/shapes
python scripts/train.py --preset shapes --stage sr64 --workdir runs/shapes
python scripts/evaluate.py --workdir runs/shapes --data datasets/shapes
"""

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

# Flat saturated colors fill these pictures, so a threshold that rescales the whole picture (dynamic)
# would turn white to grey: static clipping fits.
TEXT = TextConfig(encoder="all-MiniLM-L6-v2", width=384, length=40)
DATA = DataConfig(path="datasets/shapes")


def get_config() -> tuple[StageConfig, ...]:
    base = StageConfig(
        name="base",
        image_size=32,
        network=UNetConfig(
            channels=(32, 64, 128, 192),
            num_res_blocks=(1, 2, 2, 2),
            attention=(False, False, True, True),
            embedding=512,
            head_dim=32,
        ),
        process=ProcessConfig(prediction="x", loss_weight="min_snr", min_snr_floor=1.0),
        sampling=SamplingConfig(sampler="dpmpp_2m", steps=32, guidance_scale=3.0, threshold="static"),
        text=TEXT,
        data=DATA,
        optim=OptimConfig(
            optimizer="muon", learning_rate=2e-3, warmup_steps=500, b2=0.99, batch_size=64, ema_decay=0.999
        ),
        run=RunConfig(num_steps=50_000, checkpoint_every=1000),
    )
    super_resolution = StageConfig(
        name="sr64",
        image_size=64,
        low_res_size=32,
        network=EfficientUNetConfig(
            stem_channels=16,
            channels=(32, 64, 128),
            num_res_blocks=(1, 2, 2),
            self_attention=(False, False, True),
            cross_attention=(False, False, False),
            embedding=512,
            num_heads=4,
        ),
        process=ProcessConfig(prediction="x", loss_weight="min_snr", min_snr_floor=1.0, max_aug_level=0.5),
        sampling=SamplingConfig(
            sampler="dpmpp_2m", steps=16, guidance_scale=2.0, threshold="static", aug_level=0.1
        ),
        text=TEXT,
        data=DATA,
        optim=OptimConfig(
            optimizer="muon", learning_rate=2e-3, warmup_steps=500, b2=0.99, batch_size=32, ema_decay=0.999
        ),
        run=RunConfig(num_steps=20_000, checkpoint_every=1000),
    )
    return base, super_resolution
