"""Continuous-time variance-preserving diffusion in log-SNR: pure functions of arrays."""
