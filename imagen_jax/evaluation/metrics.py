"""Metrics of generated pictures by name; `@METRICS.register("name")` above a function or a class adds one."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from imagen_jax.checks import Verbatim, error, require
from imagen_jax.registry import Registry

METRICS = Registry("metric")
Need = Literal["claims", "reference", "low_res", "clip", "recogniser"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """The trained models that metrics use; a base of the options of commands that measure."""

    clip: str | None = None
    """A CLIP by its directory or name, for the metric "clip"."""
    recogniser: Path | None = None
    """Directory of a recogniser, as imagen-jax recogniser wrote it, for the metric "recognition"."""

    def models(self) -> dict[str, Any]:
        """Return the models by the name of the option, None for those that are not given."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(Models)}


@dataclasses.dataclass(frozen=True)
class Samples:
    """A batch of generated pictures, and the data that metrics compare them with.

    Attributes:
      images: [N, H, W, C] float32 in [-1, 1], the results of a cascade.
      captions: N str.
      claims: what N captions claim, JSON data as the data set has it, or None.
      reference: [N, H', W', C] in [-1, 1], the pictures of a data set with these captions, with the aspect of `images`
        and no larger (`reference_pictures`), or None.
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
      needs: what it needs besides pictures and captions: attributes of `Samples` and of `Models`.
      claims_of: what the captions are of whose claims it reads, such as "shapes", for messages.
      min_num: the fewest pictures that it has a result for.
    """

    name: str = ""
    needs: ClassVar[tuple[Need, ...]] = ()
    claims_of: ClassVar[str] = "pictures"
    min_num: ClassVar[int] = 1

    @staticmethod
    def reads_claims(claims: Any) -> bool:
        """Whether it can read what a caption claims; for metrics that need claims."""
        return True

    @classmethod
    def build(cls, models: Models) -> "Metric":
        """Return the metric, with those of the models that it needs."""
        return cls()

    def check_claims(self, claims: Sequence[Any], option: str) -> None:
        """Raise a ValueError that names `option`, such as "--data", if it cannot judge pictures of these claims."""

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


# What there is for metrics: of claims those of one caption, of "num" how many pictures, of others any value but None.
Given = Mapping[Need | Literal["num"], Any]


def missing(name: str, given: Given) -> Need | Literal["num"] | None:
    """Return what the metric of this name needs and is not given, or None; "num" if there are too few pictures."""
    for need in needs(name):
        value = given.get(need)
        if value is None or (need == "claims" and not METRICS[name].reads_claims(value)):
            return need
    least = _min_num(name)
    return "num" if given.get("num", least) < least else None


def _min_num(name: str) -> int:
    return getattr(METRICS[name], "min_num", Metric.min_num)


def check_needs(option: str, name: str, given: Given, data: Any = None) -> None:
    """Raise a ValueError if a metric needs more than is given.

    Args:
      option: by which the metric is chosen, such as "--score".
      name: of the metric.
      given: by the user.
      data: the data set that the user named, or None.
    """
    need = missing(name, given)
    if need is None:
        return
    if need == "claims":
        rule = f"--data of a data set of {METRICS[name].claims_of}, which records what captions claim"
    elif need == "num":
        rule = f"--num of at least {_min_num(name)}"
    else:
        rule = {"reference": "--data", "low_res": "a cascade that has a super-resolution stage"}.get(need, f"--{need}")
    got = {"claims": data, "num": given.get("num")}.get(need)
    raise error(f"{option} {name}", f"come with {rule}", Verbatim("none" if got is None else got))


def check_models(models: Models, names: Iterable[str]) -> None:
    """Raise a ValueError if a model is given that none of the metrics `names` needs."""
    needed = {need for name in names for need in needs(name)}
    for model, value in models.models().items():
        users = " or ".join(name for name in METRICS if model in needs(name))
        is_used = value is None or model in needed
        require(is_used, f"--{model}", f"be left out without the metric {users}", None if is_used else str(value))


def build(name: str, models: Models = Models()) -> Metric:
    """Return the metric that is registered under `name`.

    Args:
      name: of METRICS.
      models: for a metric that needs some.

    Raises:
      ValueError: there is no such metric, or its model cannot be loaded.
    """
    entry = METRICS[name]
    metric = entry.build(models) if inspect.isclass(entry) else PerPicture(entry)
    metric.name = name
    return metric
