"""Denoising networks in Linen: arrays in, arrays out. They depend on no schedule, mesh or configuration of a stage."""
