"""Frozen, hashable configurations: one `StageConfig` describes one diffusion stage completely."""

from imagen_jax.config.sampling import NEED_CHURN, NEED_GUIDANCE, USED_BY, SamplingConfig, override
from imagen_jax.config.serialization import MAX_JSON, differences, flat, from_dict, read_json, to_dict
from imagen_jax.config.stage import (
    NETWORKS,
    DataConfig,
    EfficientUNetConfig,
    OptimConfig,
    ProcessConfig,
    RunConfig,
    StageConfig,
    TextConfig,
    UNetConfig,
)

__all__ = [
    "MAX_JSON",
    "NEED_CHURN",
    "NEED_GUIDANCE",
    "NETWORKS",
    "USED_BY",
    "DataConfig",
    "EfficientUNetConfig",
    "OptimConfig",
    "ProcessConfig",
    "RunConfig",
    "SamplingConfig",
    "StageConfig",
    "TextConfig",
    "UNetConfig",
    "differences",
    "flat",
    "from_dict",
    "override",
    "read_json",
    "to_dict",
]
