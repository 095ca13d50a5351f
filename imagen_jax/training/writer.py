"""Where metrics go: a progress bar, a JSONL file and TensorBoard. Process 0 alone writes."""

import json
import time
from pathlib import Path

import jax


class Writer:
    """Writes a run's metrics; use as a context manager."""

    def __init__(self, directory: str | Path, name: str, first_step: int, num_steps: int):
        from tqdm import tqdm

        is_first = jax.process_index() == 0
        self._bar = tqdm(
            total=num_steps,
            initial=first_step,
            desc=name,
            unit="step",
            dynamic_ncols=True,
            disable=not is_first,
        )
        self._file = self._board = None
        if is_first:
            from tensorboardX import SummaryWriter

            self._file = open(Path(directory) / "metrics.jsonl", "a", buffering=1)
            self._board = SummaryWriter(str(directory))

    def advance(self) -> None:
        """One step is done."""
        self._bar.update()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Records the metrics of `step` and shows them beside the bar."""
        self._bar.set_postfix_str(" ".join(f"{key} {value:.3g}" for key, value in metrics.items()))
        if self._file is not None:
            self._file.write(json.dumps({"step": step, "time": time.time()} | metrics) + "\n")
            for key, value in metrics.items():
                self._board.add_scalar(key, value, step)

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        if jax.process_index() == 0:
            self._bar.write(line)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self._bar.close()
        if self._file is not None:
            self._file.close()
            self._board.close()
