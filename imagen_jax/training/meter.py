"""Metrics of the steps since the last log line."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np

from imagen_jax import processes
from imagen_jax.config import StageConfig

GIB = 2**30


class Meter:
    """Collects the metrics of steps, and fetches them from the devices when they are read.

    Every process has one and makes the same calls. All processes get the same numbers, except for times and memory,
    which are those of each process.

    Args:
      config: of the stage.
      step: number of steps done before.
      utilisation: as from `utilisation.utilisation_per_image_s`; None: it is not reported.
    """

    def __init__(self, config: StageConfig, step: int, utilisation: float | None = None):
        self._config, self._utilisation = config, utilisation
        self._step, self._in_a_row = step, 0
        self._pending: list[dict[str, jax.Array]] = []
        self._undecodable = 0
        self._begin_window()

    def _begin_window(self) -> None:
        self._since, self._waited, self._paused = time.perf_counter(), 0.0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Return a context for waiting for the next batch.

        Only time in which the devices are idle counts: all of a wait that begins after the last step is done, half of
        one during which it ends.
        """
        is_idle, begin = self._is_idle(), time.perf_counter()
        yield
        self._waited += (time.perf_counter() - begin) * (is_idle + self._is_idle()) / 2

    def _is_idle(self) -> bool:
        return not self._pending or self._pending[-1]["loss"].is_ready()

    def add(self, metrics: dict[str, jax.Array], undecodable: int) -> None:
        """Add one step, and wait for the one before, so that batches and programs do not pile up on the devices.

        Args:
          metrics: as from the train step.
          undecodable: how many of this process's records in the batch were replaced.
        """
        self._pending.append(metrics)
        self._undecodable += undecodable
        if len(self._pending) > 1:
            jax.block_until_ready(self._pending[-2]["loss"])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Return a context for what is not training: compiling, saving, evaluating."""
        begin = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begin

    def read(self, done: int) -> tuple[dict[str, float], list[int], range | None]:
        """Return (metrics, skipped steps, failed steps) of the steps since the last call, up to step `done`.

        The last is None unless more than `run.max_skipped` steps in a row were skipped.
        """
        fetched = jax.device_get(self._pending)
        skipped = [self._step + 1 + i for i, metrics in enumerate(fetched) if metrics["skipped"]]
        for step in range(self._step + 1, done + 1):
            self._in_a_row = self._in_a_row + 1 if step in skipped else 0
            if self._in_a_row > self._config.run.max_skipped:
                return {}, skipped, range(step - self._in_a_row + 1, step + 1)
        values = self._means(fetched) | {"skipped": len(skipped)} | self._data() | self._speed(len(fetched))
        self._step, self._pending = done, []
        self._begin_window()
        return values, skipped, None

    def _means(self, fetched: list[dict[str, np.ndarray]]) -> dict[str, float]:
        kept = [metrics for metrics in fetched if not metrics["skipped"]]
        scalars = ("loss", "grad_norm", "learning_rate", "ema_distance")
        values = {key: float(fetched[-1][key]) for key in scalars}
        if kept:
            values["loss"] = float(np.mean([metrics["loss"] for metrics in kept]))
            for name in kept[0]["sums"]:
                total, count = np.sum([metrics["sums"][name] for metrics in kept], axis=0)
                values |= {name: float(total / count)} if count else {}
        return values

    def _data(self) -> dict[str, float]:
        return {"undecodable": int(processes.all_gather_int(self._undecodable).sum())}

    def _speed(self, num_steps: int) -> dict[str, float]:
        seconds = max(time.perf_counter() - self._since - self._paused, 1e-9)
        values = {"images_per_s": num_steps * self._config.optim.batch_size / seconds}
        values["data_wait"] = min(1.0, self._waited / seconds)
        if self._utilisation is not None:
            values["mfu"] = values["images_per_s"] * self._utilisation
        used = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
        if None not in used:
            values["device_memory_gib"] = max(used) / GIB
        unit = 1 if sys.platform == "darwin" else 1024
        values["host_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
        return values
