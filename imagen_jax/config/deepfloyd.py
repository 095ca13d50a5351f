"""How the stages of DeepFloyd IF are sampled, whatever the size of their networks."""

from collections.abc import Mapping
from typing import Any

from imagen_jax.config.sampling import SamplingConfig
from imagen_jax.config.stage import ProcessConfig, StageConfig, TextConfig
from imagen_jax.diffusion import schedules
from imagen_jax.models.if_unet import RELEASED, IFUNetConfig

NUM_STEPS = 1000
_NOISE_LEVEL = 250  # step of the noise in the low-res image when stage II is sampled
_TEXT_LENGTH = 77
ENCODER = "google/t5-v1_1-xxl"  # the same encoder as IF's


def stage_config(
    network: IFUNetConfig,
    image_size: int,
    *,
    is_super_resolution: bool,
    image_channels: int = 3,
    text_width: int = 4096,
    sampling: Mapping[str, Any] | None = None,
) -> StageConfig:
    """Return the configuration of a stage, sampled as IF's pipelines do.

    Args:
      network: of the stage.
      image_size: side of its images in pixels.
      is_super_resolution: whether it enlarges pictures of a quarter of this size.
      image_channels: of its images.
      text_width: of the language model's embeddings.
      sampling: options, as of `SamplingConfig`, that are others than those of the released stage.
    """
    is_sr = is_super_resolution
    aug_logsnr = schedules.make("discrete_cosine").logsnr((_NOISE_LEVEL + 1) / NUM_STEPS)
    released = {
        "sampler": "ddpm",
        "steps": 50 if is_sr else 100,
        "spacing": "respaced",
        "respacing": "leading",
        "guidance_scale": 4.0 if is_sr else 7.0,
        "threshold": "dynamic",
        "percentile": 0.95,
        "cap": 1.0 if is_sr else 1.5,
        "aug_level": float(schedules.alpha_sigma(aug_logsnr)[1]) if is_sr else 0.1,
    }
    return StageConfig(
        name=f"sr{image_size}" if is_sr else "base",
        image_size=image_size,
        low_res_size=image_size // 4 if is_sr else None,
        image_channels=image_channels,
        network=network,
        process=ProcessConfig(schedule="discrete_cosine", prediction="eps"),
        sampling=SamplingConfig(**released | dict(sampling or {})),
        text=TextConfig(ENCODER, text_width, _TEXT_LENGTH, output="padded", clean_captions=True),
    )


def released_config(name: str) -> StageConfig:
    """Return the configuration of a released stage, such as "IF-I-XL"."""
    is_sr = name.startswith("IF-II-")
    return stage_config(RELEASED[name], 256 if is_sr else 64, is_super_resolution=is_sr)
