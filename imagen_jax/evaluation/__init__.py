"""Metrics of generated pictures and captions, and the comparison of sampling options."""

from imagen_jax.evaluation import (  # noqa: F401 (they register their metrics)
    alignment,
    clip_score,
    frechet,
    recognition,
    sweep,
)
from imagen_jax.evaluation.metrics import (
    METRICS,
    Metric,
    Models,
    Samples,
    build,
    check_models,
    check_needs,
    check_num,
    is_per_picture,
    min_num,
    missing,
    needs,
)
from imagen_jax.evaluation.references import references

__all__ = [
    "METRICS", "Metric", "Models", "Samples", "build", "check_models", "check_needs", "check_num",
    "is_per_picture", "min_num", "missing", "needs", "references",
]  # fmt: skip
