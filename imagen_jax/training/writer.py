"""Output of a run by process 0: progress, metrics as JSON lines, samples, TensorBoard, Weights & Biases."""

import importlib.util
import json
import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from imagen_jax.config import StageConfig, to_dict
from imagen_jax.data import transforms
from imagen_jax.progress import Progress, logger
from imagen_jax.storage import files, locations

METRICS_FILE = "metrics.jsonl"
SAMPLES = "samples"
WANDB_FILE = "wandb.id"
_BOARD, _WANDB = "TensorBoard's files", "Weights & Biases"  # in messages
_COPY_EVERY_S = 60


class Writer:
    """Writes a run's metrics and samples into the stage's directory; a context manager.

    Errors of the disk or of a service do not end training: what one place cannot take is dropped, after one warning.

    Objects in a bucket cannot be appended to. For those, files are written into a local temporary directory and copied
    when they have changed: by `flush`, with every sample, and once in `_COPY_EVERY_S` seconds.
    """

    def __init__(self, directory: str | Path, config: StageConfig, first_step: int):
        is_first = jax.process_index() == 0
        self._place = locations.location(directory, "--workdir")
        self._is_remote = locations.is_remote(self._place)
        self._directory = self._place
        self._copied: dict[Path, tuple[int, int]] = {}  # size and time of what the bucket has
        self._copied_at = time.monotonic()
        self._progress = Progress(config.run.num_steps, "steps", config.name, done=first_step, shown=is_first)
        self._file = self._board = self._run = None
        self._failing: set[str] = set()  # places that have been warned of
        if is_first:
            self._attempt(METRICS_FILE, lambda: self._open(config, first_step))
        if self._file is not None and config.run.wandb:
            self._attempt(_WANDB, lambda: self._open_wandb(config))

    def _open(self, config: StageConfig, first_step: int) -> None:
        if self._is_remote:
            self._directory = Path(tempfile.mkdtemp(prefix="imagen_jax-"))
            for name in (METRICS_FILE, WANDB_FILE):
                self._fetch(name)
        file = self._directory / METRICS_FILE
        keep_until(file, first_step)
        board = _Board(self._directory, first_step + 1)
        self._file, self._board = file.open("a", buffering=1), board

    def _open_wandb(self, config: StageConfig) -> None:
        self._run = _wandb_run(config, self._directory, self._place.parent.name)

    def resume(self) -> None:
        """Leave the time since the last step out of the speed that is shown."""
        self._progress.resume()

    def advance(self) -> None:
        """Count one step."""
        self._progress.update()

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Record the finite metrics of `step`, and show the first of them beside the progress."""
        # JSON has no nan; metrics of a skipped step may not be finite.
        metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
        shown = {key: value for key, value in metrics.items() if "/" not in key}
        self._progress.status(" ".join(f"{key} {value:.3g}" for key, value in list(shown.items())[:4]))
        if self._file is None:
            return
        line = json.dumps({"step": step, "time": time.time()} | metrics) + "\n"
        self._attempt(METRICS_FILE, lambda: self._file.write(line))
        self._attempt(_BOARD, lambda: self._board.scalars(step, metrics))
        if self._run is not None:
            self._attempt(_WANDB, lambda: self._run.log({"step": step} | metrics))
        if time.monotonic() > self._copied_at + _COPY_EVERY_S:
            self.flush()

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """Write an image of `step` to samples/<name>-<step>.png, TensorBoard and Weights & Biases."""
        if self._file is None:
            return
        pixels, file = np.asarray(picture), self._directory / SAMPLES / f"{name}-{step:08d}.png"
        self._attempt(SAMPLES, lambda: _write_picture(file, pixels))
        self._attempt(_BOARD, lambda: self._board.image(step, name, pixels))
        if self._run is not None:
            import wandb

            self._attempt(_WANDB, lambda: self._run.log({"step": step, name: wandb.Image(picture)}))
        self.flush()

    def flush(self) -> None:
        """Copy everything to its final place; called before a checkpoint, which ends the steps before it."""
        if self._file is not None:
            self._attempt(str(self._place), self._copy)

    def _fetch(self, name: str) -> None:
        try:
            (self._directory / name).write_text(files.read_text(self._place / name))
        except FileNotFoundError:
            return

    def _copy(self) -> None:
        """Copy changed files into the bucket."""
        if not self._is_remote:
            return
        for path in sorted((*self._directory.glob("*"), *self._directory.glob(f"{SAMPLES}/*"))):
            found = path.stat()
            if path.is_file() and self._copied.get(path) != (found.st_size, found.st_mtime_ns):
                files.write(self._place / path.relative_to(self._directory).as_posix(), path.read_bytes())
                self._copied[path] = (found.st_size, found.st_mtime_ns)
        self._copied_at = time.monotonic()

    def _attempt(self, place: str, write: Callable[[], Any]) -> None:
        try:
            write()
        except Exception as error:  # a full disk, or any error of a remote service
            if place not in self._failing:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                logger.warning(f"Some metrics cannot be written to {place} ({reason}); training goes on without them.")
            self._failing.add(place)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self._progress.close()
        if self._file is None:
            return
        self._attempt(METRICS_FILE, self._file.close)
        self._attempt(_BOARD, self._board.close)
        if self._run is not None:
            self._attempt(_WANDB, self._run.finish)
        self.flush()
        if self._is_remote:
            shutil.rmtree(self._directory, ignore_errors=True)


def _write_picture(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(exist_ok=True)
    files.write(file, transforms.encode_png(pixels))


class _Board:
    """Event files for TensorBoard, written synchronously.

    The thread of tensorboardX's own writer ends on a full disk, and closing the writer then never returns.
    """

    def __init__(self, directory: Path, first_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        self._events = EventsWriter(str(directory / "events"), f".from-{first_step}")
        # Makes TensorBoard drop what an interrupted run wrote of this step and later ones.
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: dict[str, float]) -> None:
        from tensorboardX import summary

        for key, value in values.items():
            self._write(step, summary=summary.scalar(key, value))
        self._events.flush()

    def image(self, step: int, name: str, pixels: np.ndarray) -> None:
        from tensorboardX import summary

        self._write(step, summary=summary.image(name, pixels, dataformats="HWC"))
        self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _write(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._events.write_event(Event(wall_time=time.time(), step=step, **content))


def _wandb_run(config: StageConfig, directory: Path, workdir: str) -> Any:
    """Return the stage's run at Weights & Biases, which is continued if the stage has one."""
    import wandb

    file = directory / WANDB_FILE
    if not file.exists():
        files.write(file, uuid.uuid4().hex)
    run = wandb.init(
        project=config.run.wandb,
        name=f"{workdir}/{config.name}",
        id=files.read_text(file),
        resume="allow",
        config=to_dict(config),
        dir=str(directory),
    )
    # Its own step counter cannot go back, which a run does when it continues from a checkpoint.
    run.define_metric("*", step_metric="step")
    return run


def keep_until(file: Path, step: int) -> None:
    """Drop the lines of steps after `step`, and an incomplete last line, from a JSONL file of metrics."""
    if not file.exists():
        return
    files.check_regular(file)  # before it is opened, which a pipe would never let happen
    lines = file.read_text(errors="replace").splitlines(keepends=True)
    kept = "".join(line for line in lines if line.endswith("\n") and _step(line) <= step)
    if kept != "".join(lines):
        files.write(file, kept)


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def check_wandb(project: str) -> None:
    """Raise a ValueError if a project is given and wandb is not installed."""
    if project and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            f"run.wandb must be empty where wandb is not installed; got {project!r}: pip install wandb, or leave it "
            "out."
        )
