"""The cascade of DeepFloyd IF, 64 -> 256, in three sizes: `--preset deepfloyd:xl` (or l, m).

  python scripts/plan.py --preset deepfloyd:xl --topology v5e:2x2 --kind sample --batch 4 --dtype bfloat16
  python scripts/plan.py --preset deepfloyd:xl --stage sr256 --topology v5e:2x2 --kind sample --batch 4 --dtype bfloat16

For planning, with the networks of the published weights, and sampled as these are. Parameters:

  xl  IF-I-XL  4,305M and IF-II-L  1,243M
  l   IF-I-L     935M and IF-II-L  1,243M
  m   IF-I-M     372M and IF-II-M    461M
"""

import dataclasses
from typing import Literal

from imagen_jax.config import DataConfig, OptimConfig, RunConfig, StageConfig
from imagen_jax.config.deepfloyd import released_config

STAGES = {"xl": ("IF-I-XL", "IF-II-L"), "l": ("IF-I-L", "IF-II-L"), "m": ("IF-I-M", "IF-II-M")}
# Devices of 16 GB over which the parameters have to be spread.
FSDP = {"xl": 4, "l": 1, "m": 1}


def get_config(size: Literal["xl", "l", "m"] = "xl") -> tuple[StageConfig, ...]:
    return tuple(
        dataclasses.replace(
            released_config(name),
            data=DataConfig(path="datasets/images"),
            optim=OptimConfig(optimizer="adamw", learning_rate=1e-5, b2=0.99),
            run=RunConfig(fsdp=FSDP[size], remat="full"),
        )
        for name in STAGES[size]
    )
