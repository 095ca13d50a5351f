"""From prompts to pictures over all devices, and the records of how each picture was made."""

from imagen_jax.generate.pmapped import pmap_sample_cascade
from imagen_jax.generate.prompts import compile_cascade, encode, generate, whole_batch

__all__ = ["compile_cascade", "encode", "generate", "pmap_sample_cascade", "whole_batch"]
