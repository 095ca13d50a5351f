"""From prompts to pictures over all devices, and the records of how each picture was made."""

from imagen_jax.generate.compiled import compile_cascade
from imagen_jax.generate.in_turn import encode_prompts, run_in_turn
from imagen_jax.generate.pmapped import pmap_sample_cascade
from imagen_jax.generate.prompts import encode, generate, plan_prompts, run_prompts, whole_batch

__all__ = [
    "compile_cascade",
    "encode",
    "encode_prompts",
    "generate",
    "plan_prompts",
    "pmap_sample_cascade",
    "run_in_turn",
    "run_prompts",
    "whole_batch",
]
