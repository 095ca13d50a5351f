"""Metrics of generated pictures by name; `@METRICS.register("name")` above a function or a class adds one."""

import dataclasses
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any, ClassVar, Literal

import numpy as np

from imagen_jax.registry import Registry

METRICS = Registry("metric")
Need = Literal["claims", "reference", "low_res", "clip"]


@dataclasses.dataclass(frozen=True)
class Samples:
    """A batch of generated pictures, and the data that metrics compare them with.

    Attributes:
      images: [N, H, W, C] float32 in [-1, 1], the results of a cascade.
      captions: N str.
      claims: N claims of captions of shapes (`imagen_jax.prepare.shape_captions`), or None.
      reference: [N, H', W', C] in [-1, 1], the pictures of a data set with these captions, or None.
      low_res: [N, h, w, C] in [-1, 1], the results of the stage before the last, or None.
    """

    images: np.ndarray
    captions: Sequence[str]
    claims: Sequence[Any] | None = None
    reference: np.ndarray | None = None
    low_res: np.ndarray | None = None


class Metric:
    """Base of metrics, whose statistics are updated batch by batch.

    A metric that is a mean over pictures defines `values`; a registered function (Samples) -> [N] serves as `values`.
    Other metrics define `init`, `update` and `result`.

    Attributes:
      name: in METRICS.
      needs: what it needs besides pictures and captions: attributes of `Samples`, or "clip", the name of a CLIP.
    """

    name: str = ""
    needs: ClassVar[tuple[Need, ...]] = ()

    @classmethod
    def build(cls, clip: str | None) -> "Metric":
        """Return the metric; `clip` is the directory or name of a CLIP."""
        return cls()

    def values(self, samples: Samples) -> np.ndarray:
        """Return a value for each picture, [N], the higher the better."""
        raise NotImplementedError(f"{type(self).__name__} has no value for a single picture")

    def init(self) -> Any:
        """Return the statistics of no picture."""
        return ()

    def update(self, state: Any, samples: Samples) -> Any:
        """Return the statistics `state` with those of a batch added."""
        return (*state, np.asarray(self.values(samples)))

    def result(self, state: Any) -> Any:
        """Return the metric as a number, or as JSON data."""
        return float(np.concatenate(state).mean())

    def report(self, result: Any) -> str:
        """Return what `result` returned as Markdown."""
        return f"{self.name}: {result:.4g}"


class PerPicture(Metric):
    """The mean over pictures of a function (Samples) -> [N]."""

    def __init__(self, function: Callable[[Samples], np.ndarray]):
        self._function = function

    def values(self, samples: Samples) -> np.ndarray:
        return self._function(samples)


def needs(name: str) -> tuple[Need, ...]:
    """Return what the metric of this name needs, as `Metric.needs`."""
    return getattr(METRICS[name], "needs", ())


def is_per_picture(name: str) -> bool:
    """Return whether the metric of this name has a value for every picture, the higher the better."""
    entry = METRICS[name]
    return not inspect.isclass(entry) or entry.values is not Metric.values


_NEEDED = {
    "claims": "--data of a data set of shapes, which records what captions claim",
    "reference": "--data",
    "low_res": "a cascade that has a super-resolution stage",
    "clip": "--clip",
}


def check_needs(option: str, name: str, available: Collection[Need]) -> None:
    """Raise a ValueError if a metric needs more than is available.

    Args:
      option: by which the metric is chosen, such as "--score".
      name: of the metric.
      available: what metrics may need, as in `Metric.needs`.
    """
    for need in needs(name):
        if need not in available:
            raise ValueError(f"{option} {name} must come with {_NEEDED[need]}; got none.")


def build(name: str, clip: str | None = None) -> Metric:
    """Return the metric that is registered under `name`.

    Args:
      name: of METRICS.
      clip: the directory or name of a CLIP, for a metric that needs one.

    Raises:
      ValueError: there is no such metric, or its CLIP cannot be loaded.
    """
    entry = METRICS[name]
    metric = entry.build(clip) if inspect.isclass(entry) else PerPicture(entry)
    metric.name = name
    return metric
