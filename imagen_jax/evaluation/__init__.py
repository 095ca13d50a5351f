"""Metrics of generated pictures and captions, and the comparison of sampling options."""

from imagen_jax.evaluation import alignment, clip_score, frechet, sweep  # noqa: F401 (they register their metrics)
from imagen_jax.evaluation.metrics import METRICS, Metric, Samples, build, check_needs, is_per_picture, needs

__all__ = ["METRICS", "Metric", "Samples", "build", "check_needs", "is_per_picture", "needs"]
