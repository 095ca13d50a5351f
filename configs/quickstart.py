"""A cascade that trains in minutes on two CPU cores: single shapes, 16x16 -> 64x64.

bash scripts/quickstart.sh
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

TEXT = TextConfig(encoder="all-MiniLM-L6-v2", width=384, length=24)
DATA = DataConfig(path="datasets/shapes_single")


def get_config() -> tuple[StageConfig, ...]:
    base = StageConfig(
        name="base",
        image_size=16,
        network=UNetConfig(
            channels=(32, 64, 128), num_res_blocks=(1, 1, 1), attention=(False, True, True), head_dim=32
        ),
        process=ProcessConfig(prediction="v", loss_weight="plain"),
        sampling=SamplingConfig(sampler="dpmpp_2m", steps=32, guidance_scale=4.0),
        text=TEXT,
        data=DATA,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=100, b2=0.99, batch_size=32, ema_decay=0.995),
        run=RunConfig(num_steps=1500, checkpoint_every=250, log_every=25),
    )
    super_resolution = StageConfig(
        name="sr64",
        image_size=64,
        low_res_size=16,
        network=EfficientUNetConfig(
            stem_channels=16,
            channels=(32, 64, 96),
            num_res_blocks=(1, 1, 2),
            self_attention=(False, False, True),
            cross_attention=(False, False, False),
            num_heads=4,
        ),
        process=ProcessConfig(prediction="v", loss_weight="plain", max_aug_level=0.5),
        sampling=SamplingConfig(sampler="dpmpp_2m", steps=16, guidance_scale=2.0, aug_level=0.1),
        text=TEXT,
        data=DATA,
        optim=OptimConfig(learning_rate=1e-3, warmup_steps=100, b2=0.99, batch_size=16, ema_decay=0.99),
        run=RunConfig(num_steps=700, checkpoint_every=250, log_every=25),
    )
    return base, super_resolution
