"""What a run reports about its last steps."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from imagen_jax import processes
from imagen_jax.config import StageConfig
from imagen_jax.diffusion.losses import BUCKETS

GIB = 2**30


class Meter:
    """Gathers the metrics of steps, fetched from the devices only when asked for.

    Every process has one and makes the same calls; all of them get the same numbers, but for times and memory, which
    are a process's own.
    """

    def __init__(self, config: StageConfig, step: int, utilisation: float | None = None):
        """`utilisation` is that of one image a second, see `utilisation_per_image_s`."""
        self._config, self._utilisation = config, utilisation
        self._step, self._in_a_row = step, 0
        self._pending: list[dict[str, jax.Array]] = []
        self._undecodable = 0
        self._begin_window()

    def _begin_window(self) -> None:
        self._since, self._waited, self._paused = time.perf_counter(), 0.0, 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what waits for the next batch. Only waits with nothing left for the devices to do count: all of one
        that begins when the last step is done, half of one during which it ends."""
        is_idle, begin = self._is_idle(), time.perf_counter()
        yield
        self._waited += (time.perf_counter() - begin) * (is_idle + self._is_idle()) / 2

    def _is_idle(self) -> bool:
        return not self._pending or self._pending[-1]["loss"].is_ready()

    def add(self, metrics: dict[str, jax.Array], undecodable: int) -> None:
        """One step: its metrics, and how many of this process's records in it had to be replaced. Returns when the step
        before is done: batches and programs must not pile up on the devices."""
        self._pending.append(metrics)
        self._undecodable += undecodable
        if len(self._pending) > 1:
            jax.block_until_ready(self._pending[-2]["loss"])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training: compiling, saving, looking."""
        begin = time.perf_counter()
        yield
        self._paused += time.perf_counter() - begin

    def read(self, done: int) -> tuple[dict[str, float], list[int], range | None]:
        """Of the steps since the last call, up to `done`: (their metrics, those that were skipped, and the last
        steps if more than `run.max_skipped` in a row were)."""
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
            sums, counts = (np.sum([m[key] for m in kept], axis=0) for key in ("loss_sums", "loss_counts"))
            values |= by_bucket("loss", sums, counts)
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


def by_bucket(name: str, sums: Any, counts: Any) -> dict[str, float]:
    """Mean losses by log-SNR, of the buckets that have any."""
    return {
        f"{name}_logsnr/{bucket}": float(total / count)
        for bucket, total, count in zip(BUCKETS, sums, counts, strict=True)
        if count
    }


def utilisation_per_image_s(config: StageConfig, num_devices: int) -> float | None:
    """What one image a second is of the devices' peak: model FLOPs (forward and backward, nothing computed twice) over
    the peak of bfloat16 products of all devices. None where the devices' peak is not known."""
    from imagen_jax.planning import chips  # inside, for planning looks into training
    from imagen_jax.planning.estimate import estimate

    chip = chips.of_kind(jax.devices()[0].device_kind)
    if chip is None:
        return None
    return estimate(config, "train", num_devices).model_flops_per_image / (chip.flops * num_devices)
