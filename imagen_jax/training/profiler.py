"""A trace of some training steps, for TensorBoard (XProf) and Perfetto."""

from pathlib import Path
from types import TracebackType
from typing import Any

import jax

from imagen_jax import checks
from imagen_jax.checks import require
from imagen_jax.progress import logger
from imagen_jax.storage import locations

OPTION = "--profile"
SKIPPED = 3  # steps before the trace: the first one compiles
MAX_STEPS = 100  # a trace of more does not open


class Trace:
    """Traces `num` steps with JAX's profiler, as a context around the loop; none for 0.

    A run that has fewer steps left is traced to its end.
    """

    def __init__(self, directory: Path, first: int, num: int):
        """Prepare a trace that is written to `directory`, of a run that continues at step `first`."""
        self._directory, self._begin, self._num = directory, first + SKIPPED + 1, num
        self._is_running = False
        self._step: jax.profiler.StepTraceAnnotation | None = None

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._stop()

    def before(self, step: int) -> None:
        """Start the trace before its first step, and a step of the trace."""
        if self._num and step == self._begin:
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._is_running = True
        if self._is_running:
            self._step = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._step.__enter__()

    def after(self, step: int, result: Any) -> None:
        """End a step of the trace; after the last one wait for its result, and write the trace."""
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
        if self._is_running and step == self._begin + self._num - 1:
            jax.block_until_ready(result)
            self._stop()

    def _stop(self) -> None:
        if self._is_running:
            self._is_running = False
            jax.profiler.stop_trace()
            logger.info(f"Wrote a trace to {self._directory}: see docs/training.md")


def check(num: int, workdir: Path) -> None:
    """Raise a ValueError if `num` steps cannot be traced into a directory in `workdir`."""
    checks.whole(OPTION, num, 0, MAX_STEPS)
    fix = "give a local --workdir"
    require(not num or not locations.is_remote(workdir), OPTION, "be 0 with a --workdir in a bucket", num, fix)
