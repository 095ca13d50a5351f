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
    is_per_picture,
    missing,
    needs,
)
from imagen_jax.evaluation.references import reference_pictures

__all__ = [
    "METRICS", "Metric", "Models", "Samples", "build", "check_models", "check_needs", "is_per_picture", "missing",
    "needs", "reference_pictures",
]  # fmt: skip
