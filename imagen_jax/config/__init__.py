"""Frozen, hashable configurations: one `StageConfig` describes one diffusion stage completely."""

from imagen_jax.config.sampling import FlatOption, SamplingConfig, flat_options, override
from imagen_jax.config.serialization import MAX_JSON, differences, flat, from_dict, read_json, to_dict
from imagen_jax.config.stage import (
    OBJECTIVES,
    OPTIMIZERS,
    DataConfig,
    DistilledConfig,
    LoraConfig,
    OptimConfig,
    ProcessConfig,
    RunConfig,
    StageConfig,
    TextConfig,
)
from imagen_jax.models.efficient_unet import EfficientUNetConfig
from imagen_jax.models.if_unet import IFUNetConfig
from imagen_jax.models.network import NETWORKS, NetworkConfig
from imagen_jax.models.unet import UNetConfig

__all__ = [
    "MAX_JSON", "NETWORKS", "OBJECTIVES", "OPTIMIZERS", "DataConfig", "DistilledConfig", "EfficientUNetConfig",
    "FlatOption", "IFUNetConfig", "LoraConfig", "NetworkConfig", "OptimConfig", "ProcessConfig", "RunConfig",
    "SamplingConfig", "StageConfig", "TextConfig", "UNetConfig", "differences", "flat", "flat_options", "from_dict",
    "override", "read_json", "to_dict",
]  # fmt: skip
