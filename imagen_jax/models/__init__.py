"""Denoising networks in Linen: arrays in, arrays out; they know no schedule and no loss."""
