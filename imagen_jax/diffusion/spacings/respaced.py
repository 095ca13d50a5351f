"""The steps of discretely trained networks, so many in each part of the process."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checks import require
from imagen_jax.diffusion.spacings.spacing import SPACINGS, Spacing
from imagen_jax.diffusion.spacings.trailing import TIMES
from imagen_jax.methods import option

# Steps in each of equal parts of the process, the cleanest first, that DeepFloyd IF was published with.
RESPACINGS = {
    "fast27": (10, 10, 3, 2, 2),
    "smart27": (7, 4, 2, 1, 2, 4, 7),
    "smart50": (10, 6, 4, 3, 2, 2, 3, 4, 6, 10),
    "smart100": (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 13),
    "smart185": (1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20),
    "super27": (1, 1, 1, 1, 1, 1, 1, 2, 5, 13),
    "super40": (2, 2, 2, 2, 2, 2, 3, 4, 6, 15),
    "super100": (4, 4, 6, 6, 8, 8, 10, 10, 14, 30),
}


@SPACINGS.register("respaced")
@dataclasses.dataclass(frozen=True)
class Respaced(Spacing):
    """Steps among the 1000 of a discretely trained network (Nichol & Dhariwal 2021, section 4)."""

    respacing: str | None = option(None, "may be empty")
    """which of the 1000 steps: a name of DeepFloyd IF's (fast27, smart27, smart50, smart100, smart185, super27,
    super40, super100), or numbers of steps in equal parts, cleanest first, as in 10,10,3,2,2; leading is every n-th
    from the cleanest on."""

    def check(self) -> None:
        super().check()
        rule = f"be leading, {', '.join(RESPACINGS)}, or numbers of steps such as 10,10,3,2,2"
        is_known = self.respacing in (None, "leading", *RESPACINGS) or _counts(self.respacing) is not None
        require(is_known, "respacing", rule, self.respacing)

    def check_range(self, steps: int, start: float, names: tuple[str, str] = ("steps", "start")) -> None:
        num = len(self._indices(steps, start))
        why = "with spacing 'respaced', whose first step is there"
        least = (self._indices(steps, 1.0).min() + 1) / TIMES if num == 0 else 0
        require(num > 0, names[1], f"be at least {least:g} {why}", start)
        given = f"respacing {self.respacing!r}" if self.respacing else "spacing 'respaced'"
        require(steps == num, names[0], f"be {num}, which {given} has from {names[1]} {start:g} on", steps)

    def steps_from(self, steps: int, start: float) -> int:
        if self.respacing in (None, "leading"):
            return super().steps_from(steps, start)
        return len(self._indices(steps, start))

    def levels(self, schedule: Any, steps: int, start: float) -> jax.Array:
        return schedule.logsnr(jnp.asarray((self._indices(steps, start) + 1) / TIMES, jnp.float32))

    def _indices(self, steps: int, start: float) -> np.ndarray:
        """Return the steps from 0 to 999 that are not noisier than the time `start`, noisiest first."""
        num = round(TIMES * start)  # steps up to there
        if self.respacing in (None, "leading"):
            steps = min(steps, num)
            stride = num // max(steps, 1)
            if self.respacing is None:  # the first and the last are among them
                stride = (num - 1) / max(steps - 1, 1)
                return np.round(num - 1 - stride * np.arange(steps)).astype(int)
            return stride * np.arange(steps)[::-1]
        counts = RESPACINGS.get(self.respacing) or _counts(self.respacing)
        sizes = [TIMES // len(counts) + (i < TIMES % len(counts)) for i in range(len(counts))]
        found, begin = [], 0
        for size, count in zip(sizes, counts, strict=True):
            stride = (size - 1) / (count - 1) if count > 1 else 1.0
            # Added up, and rounded to even, as the published lists are.
            places = itertools.accumulate([stride] * (count - 1), initial=0.0)
            found += [begin + round(place) for place in places if count]
            begin += size
        return np.array([i for i in reversed(found) if i < num], int)


def _counts(text: str) -> tuple[int, ...] | None:
    """Return numbers of steps in equal parts, None if the text is no such list or a part has fewer times."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts) or len(parts) > TIMES:
        return None
    counts = tuple(map(int, parts))
    fits = all(count <= TIMES // len(counts) for count in counts) and any(counts)
    return counts if fits else None
