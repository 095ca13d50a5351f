"""Share of pictures of icons whose subject and style a recogniser names right.

The recogniser (`recogniser`) is trained on real pictures alone. A subject that it does not know counts in style alone.
"""

from typing import Any

import numpy as np

from imagen_jax.checks import Verbatim, require
from imagen_jax.evaluation.metrics import METRICS, Metric, Models, Samples
from imagen_jax.evaluation.rates import Rates, format_table, rates
from imagen_jax.evaluation.recogniser import Answer, Recogniser, accuracy_table, load
from imagen_jax.prepare.icons.captions import are_claims

CATEGORIES = ("subject", "subject in top 5", "style")


@METRICS.register("recognition")
class Recognition(Metric):
    """Whether subject and style are recognised. The value of a picture is the mean of both, each 0 or 1."""

    needs = ("claims", "recogniser")
    claims_of = "icons"
    reads_claims = staticmethod(are_claims)

    def __init__(self, recogniser: Recogniser):
        self._recogniser = recogniser

    @classmethod
    def build(cls, models: Models) -> "Recognition":
        return cls(load(models.recogniser, "--recogniser"))

    def check_claims(self, claims: list[dict[str, Any]], option: str) -> None:
        known = self._recogniser.config.styles
        unknown = sorted({claim["style"] for claim in claims} - set(known))
        rule, fix = f"have styles of the recogniser, {', '.join(known)}", "train a recogniser on this data set"
        require(not unknown, option, rule, Verbatim(", ".join(unknown)), fix)

    def values(self, samples: Samples) -> np.ndarray:
        verdicts = map(self._score, self._recogniser.answers(samples.images), samples.claims)
        return np.array([np.mean([v[name] for name in ("subject", "style") if name in v]) for v in verdicts])

    def update(self, state: tuple, samples: Samples) -> tuple:
        return (*state, *zip(self._recogniser.answers(samples.images), samples.claims, strict=True))

    def result(self, state: tuple) -> Rates:
        return rates(*zip(*state, strict=True), self._score, CATEGORIES)

    def report(self, result: Rates) -> str:
        num, known = (result[name]["num"] if name in result else 0 for name in ("style", "subject"))
        unknown = f"{num - known} of {num} prompts have subjects that the recogniser does not know: style alone counts."
        lines = ["The recogniser's own accuracy on real pictures:", accuracy_table(self._recogniser.accuracy)]
        return "\n\n".join([format_table(result), *[unknown] * (known < num), *lines])

    def _score(self, answer: Answer, claims: dict[str, Any]) -> dict[str, bool]:
        """Return what is right, without the subject if the recogniser does not know it."""
        verdict = {"style": answer.style == claims["style"]}
        if claims["subject"] in self._recogniser.config.subjects:
            verdict["subject"] = answer.subjects[0] == claims["subject"]
            verdict["subject in top 5"] = claims["subject"] in answer.subjects
        return verdict
