"""Clocks, and what the local devices reach: products, copies, memory."""

import dataclasses
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax import sharding
from imagen_jax.planning import targets


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Seconds of something that was repeated: the median, the least, the most, and the CPU seconds of all threads."""

    median: float
    least: float
    most: float
    cpu: float


@dataclasses.dataclass(frozen=True)
class Peaks:
    """What all devices together reach: FLOP/s of matrix products, bytes per second read and written by a copy."""

    flops: float
    bandwidth: float


def clocks() -> np.ndarray:
    """Return the seconds that have passed, and those that all threads of this process have computed."""
    return np.array([time.perf_counter(), time.process_time()])


def repeated(run: Callable[[], Any], times: int) -> Seconds:
    """Return the seconds of `run`, which waits for its results, after one call that is not timed."""
    run()
    found = []
    for _ in range(times):
        begin = clocks()
        run()
        found.append(clocks() - begin)
    passed, cpu = zip(*found, strict=True)
    return Seconds(statistics.median(passed), min(passed), max(passed), statistics.median(cpu))


def measure_peaks(mesh: Mesh, dtype: jnp.dtype, side: int | None = None, repeats: int = 5) -> Peaks:
    """Return the fastest of some matrix products and of some copies, on all devices of a mesh at once.

    Args:
      mesh: of the devices.
      dtype: of the matrices.
      side: of the square matrices; None: 8192 on accelerators and 2048 on CPUs. What is copied has 4 side^2 numbers in
        float32, 1 GiB on accelerators.
      repeats: of which the fastest counts.
    """
    side = side or (2048 if jax.default_backend() == "cpu" else 8192)
    own = sharding.make_mesh(devices=list(mesh.devices.flat))  # without fsdp and height, each device has a matrix
    made = lambda shape, dtype: jax.device_put(
        jnp.full((mesh.size, *shape), 0.5, dtype), sharding.batch_sharding(own)
    )
    matrices, numbers = made((side, side), dtype), made((4, side, side), jnp.float32)
    product, copy = jax.jit(lambda a: a @ a), jax.jit(lambda a: -a)
    fastest = lambda function, on: repeated(lambda: function(on).block_until_ready(), repeats).least
    flops = 2 * mesh.size * side**3 / fastest(product, matrices)
    return Peaks(flops, bandwidth=2 * numbers.nbytes / fastest(copy, numbers))


def memory_limit() -> int | None:
    """Return the bytes that a program may use on each local device; on CPUs what is available now, shared by them."""
    target = targets.target(None)
    if target.memory is not None or jax.default_backend() != "cpu":
        return target.memory
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    whole = int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return whole // jax.local_device_count()
