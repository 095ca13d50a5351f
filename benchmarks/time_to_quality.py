"""Trains a base stage and imagen-pytorch 2.1 on the same pictures, and judges both by the time that they took.

  python scripts/prepare_data.py --shapes single --output datasets/shapes_single --num-train 12000
  python benchmarks/time_to_quality.py --peer-python ~/imagen-pytorch/bin/python
  python benchmarks/time_to_quality.py                # draws again what has been measured

--peer-python is the Python of an environment made with `pip install torch einops beartype pydantic tqdm numpy pillow
accelerate ema_pytorch pytorch-warmup` and `pip install --no-deps imagen-pytorch`. Both train side by side, each on half
of the cores, or with --only one of them on all; what --output holds is not measured again.

Ours is the base of a preset, trained by scripts/train.py. imagen-pytorch trains a U-Net of about as many parameters and
otherwise its own defaults with its own trainer: Adam, its average of the parameters, min-SNR weights of the loss of
eps, attention on all levels but the first, dynamic thresholding. Both see the same pictures, at the size of our base,
and the same embeddings of their captions, and each has the memory allocator with which it is used. Time is wall time
from the start of the program, with imports and compilation; judging is not counted. imagen-pytorch is judged by its
averaged or its plain parameters at each time, whichever has the smaller Fréchet distance, since its average spans most
of a short run. The pictures of held-out captions are judged by "alignment" and "frechet", enlarged to the size of the
data.

Then each samples with its last parameters in more and fewer steps: CPU seconds a picture against quality. Ours has the
sampler and the guidance of its preset, imagen-pytorch its ancestral sampler and the same guidance scale.
"""

import dataclasses
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

from imagen_jax.cli import malloc

if __name__ == "__main__":
    malloc.restart()  # before anything imports JAX

from imagen_jax.cli import parsing, program
from imagen_jax.config import StageConfig
from imagen_jax.storage import files

ROOT = Path(__file__).resolve().parents[1]
PEER = Path(__file__).parent / "peers/imagen_pytorch_training.py"
NAMES = ("imagen_jax", "imagen-pytorch")
BATCH = 40  # of sampling
CATEGORIES = ("color", "shape", "all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    peer_python: Path | None = None
    """Python of the environment that has imagen-pytorch 2.1."""
    only: Literal["imagen_jax", "imagen-pytorch"] | None = None
    """Train one of them, on all cores."""
    data: Path = Path("datasets/shapes_single")
    """Data set of shapes, as imagen-jax prepare --shapes writes it."""
    output: Path = Path("runs/time_to_quality")
    """Directory of stages, pictures, figures and the plot."""
    preset: str = "quickstart"
    """Preset whose base is trained, by name or as a .py file."""
    train_steps: int | None = None
    """Steps of ours, at the last of which its learning rate is 0; None: as in the preset."""
    points: int = 8
    """Checkpoints of ours that are judged, spread evenly over its steps."""
    minutes: tuple[float, ...] = (15.0, 30.0, 45.0)
    """When imagen-pytorch is judged; it ends at the last."""
    steps: tuple[int, ...] = (4, 8, 16, 32)
    """Steps of sampling with the last parameters, ours."""
    peer_steps: tuple[int, ...] = (16, 32, 64)
    """The same of imagen-pytorch. The middle one is that of the pictures on the way."""
    num: int = 160
    """Held-out captions that are drawn, from the start of the split test."""
    peer_width: int = 32
    """Channels of imagen-pytorch's first level."""
    peer_batch_size: int = 16
    """Pictures in a step of imagen-pytorch."""
    peer_learning_rate: float = 1e-4
    """Of imagen-pytorch; 1e-4 is its default."""


def main(options: Options) -> None:
    from imagen_jax.config import presets

    for name in ("train_steps", "points", "num", "peer_width", "peer_batch_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(options, name)}.")
    for name, least in (("minutes", 0), ("steps", 1), ("peer_steps", 1)):
        values = getattr(options, name)
        if not values or min(values) < least or list(values) != sorted(values):
            raise ValueError(
                f"--{name.replace('_', '-')} must be rising numbers, {least} at least; got {values}."
            )
    config = presets.load_preset(options.preset)[0]
    missing = [name for name in NAMES if not (options.output / f"{name}.json").exists()]
    missing = [name for name in missing if options.only in (None, name)]
    if "imagen-pytorch" in missing and options.peer_python is None:
        raise ValueError(
            "--peer-python must name a Python that has imagen-pytorch 2.1; got none: see --help."
        )
    if missing:
        measure(options, config, missing)
    found = {name: options.output / f"{name}.json" for name in NAMES}
    results = {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}
    files.write(options.output / "time_to_quality.png", plot(results))
    print(format_tables(results))


def measure(options: Options, config: StageConfig, names: list[str]) -> None:
    """Train and judge, and write a file of figures for each name."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(names) > 1 and len(cores) < 2:
        raise ValueError(
            f"Two trainings must have a core each; got {cores}: give --only, for one after the other."
        )
    half = len(cores) // len(names)
    own, rest = (cores, cores) if len(names) == 1 else (cores[:half], cores[half:])
    if own:
        os.sched_setaffinity(0, own)  # of the training as well, which inherits it
        os.environ["NPROC"] = str(len(own))  # where XLA looks for the number of its threads
    test = Test(options, config)
    options.output.mkdir(parents=True, exist_ok=True)
    peer = Peer(options, config, test, rest) if "imagen-pytorch" in names else None
    try:
        if "imagen_jax" in names:
            files.write_json(options.output / "imagen_jax.json", ours(options, config, test))
        if peer is not None:
            files.write_json(options.output / "imagen-pytorch.json", peer.judged(test))
    finally:
        if peer is not None:
            peer.end()


class Test:
    """Held-out captions, and what judges pictures of them."""

    def __init__(self, options: Options, config: StageConfig):
        from imagen_jax.data import pipeline, sources, transforms
        from imagen_jax.evaluation import alignment, frechet
        from imagen_jax.text import encoders

        source = sources.open_source(options.data, "test")
        self.examples = list(pipeline.examples(source, range(min(options.num, len(source)))))
        self.metrics = {"alignment": alignment.Alignment(), "frechet": frechet.Frechet()}
        self.metrics["alignment"].check_claims([each["claims"] for each in self.examples], "--data")
        self.reference = np.stack([transforms.to_unit(each["image"]) for each in self.examples])
        self.encoder = encoders.from_config(config.text)
        self.asked = self.encoder.encode(
            [each["caption"] for each in self.examples], length=config.text.length
        )

    def judge(self, images: np.ndarray) -> dict[str, float]:
        """Return the rates, in percent, and the Fréchet distance of pictures [N, H, W, C] of the captions."""
        from imagen_jax.evaluation.metrics import Samples

        samples = Samples(
            images=images,
            captions=[each["caption"] for each in self.examples],
            claims=[each["claims"] for each in self.examples],
            reference=self.reference,
        )
        found = {name: each.result(each.update(each.init(), samples)) for name, each in self.metrics.items()}
        rates = {name: 100 * found["alignment"][name]["right"] for name in CATEGORIES}
        return {**rates, "frechet": float(found["frechet"])}


# ---- ours ----


def ours(options: Options, config: StageConfig, test: Test) -> dict[str, Any]:
    """Train with imagen-jax train, then judge its checkpoints and its samplers."""
    from imagen_jax import load_stage
    from imagen_jax.training.state import count

    workdir = options.output / "imagen_jax"
    if workdir.exists():
        raise ValueError(
            f"--output {options.output} must not hold a training of before; remove {workdir} first."
        )
    total = options.train_steps or config.run.num_steps
    settings = {
        "--preset": options.preset, "--stage": config.name, "--workdir": workdir, "--data.path": options.data,
        "--run.checkpoint-every": max(1, total // options.points), "--run.keep-checkpoints": total,
        "--run.num-steps": total, "--optim.decay-steps": options.train_steps or config.optim.decay_steps,
    }  # fmt: skip
    command = [
        sys.executable,
        ROOT / "scripts/train.py",
        *(word for pair in settings.items() for word in pair),
    ]
    start = time.time()
    with (options.output / "imagen_jax.log").open("w") as log:
        train = subprocess.run([*map(str, command)], stdout=log, stderr=subprocess.STDOUT, check=False)
    if train.returncode:
        raise ValueError(f"The training of imagen_jax must end well; got {train.returncode}: see {log.name}.")
    checkpoints = (workdir / config.name / "checkpoints").iterdir()
    steps = sorted(int(path.name) for path in checkpoints if path.name.isdigit())
    points = []
    for step in steps:
        stage = load_stage(workdir / config.name, step)
        minutes = ((workdir / config.name / "checkpoints" / str(step)).stat().st_mtime - start) / 60
        images, _ = sampled(stage, test, config.sampling.steps)
        points.append({"minutes": minutes, "pictures": step * config.optim.batch_size, **test.judge(images)})
    sampling = []
    for number in options.steps:
        sampled(stage, test, number, num=BATCH)  # compiles
        images, seconds = sampled(stage, test, number)
        sampling.append({"steps": number, "seconds": seconds, **test.judge(images)})
    return {
        "parameters": count(stage.params),
        "versions": f"jax {metadata.version('jax')}",
        "points": points,
        "sampling": sampling,
    }


def sampled(stage: Any, test: Test, steps: int, num: int | None = None) -> tuple[np.ndarray, float]:
    """Return pictures of the first `num` captions, or of all, and the CPU seconds a picture."""
    import jax

    from imagen_jax import image_keys, sample_cascade

    total = num or len(test.examples)
    busy, made = time.process_time(), []
    for first in range(0, total, BATCH):
        rows = np.arange(first, first + BATCH) % len(test.examples)  # the last batch is filled: one program
        text = jax.tree.map(lambda x, rows=rows: x[rows], test.asked)
        made.append(np.asarray(sample_cascade((stage,), text, image_keys(first, BATCH), steps=steps)))
    return np.concatenate(made)[:total], (time.process_time() - busy) / (BATCH * len(made))


# ---- imagen-pytorch ----


class Peer:
    """imagen-pytorch in a Python of its own; it begins to train when this is made."""

    def __init__(self, options: Options, config: StageConfig, test: Test, cores: list[int]):
        self._options = options
        data = options.output / "pictures.npz"
        np.savez(data, **peer_data(options, config, test))
        settings = {
            "cores": cores, "threads": max(1, len(cores)), "data": str(data), "width": options.peer_width,
            "batch_size": options.peer_batch_size, "learning_rate": options.peer_learning_rate,
            "minutes": options.minutes, "guidance_scale": config.sampling.guidance_scale,
            "kept": str(options.output / "imagen-pytorch.pt"),
        }  # fmt: skip
        self._log = (options.output / "imagen-pytorch.log").open("w+")
        self._process = subprocess.Popen(
            # -I: files here, which have the name of the package, are not found instead of it.
            [options.peer_python.expanduser(), "-I", PEER, json.dumps(settings)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env=malloc.without(os.environ),
        )  # fmt: skip
        self._facts = self._answer()

    def judged(self, test: Test) -> dict[str, Any]:
        """Wait until it has trained, then judge its pictures."""
        options, times = self._options, [self._answer() for _ in self._options.minutes]
        middle, last = options.peer_steps[len(options.peer_steps) // 2], len(times) - 1
        found, averaged = {}, {}
        for i in range(len(times)):
            both = {each: self._sample(test, i, each, middle) for each in (True, False)}
            averaged[i] = min(both, key=lambda each, both=both: both[each][1]["frechet"])
            found[i, middle] = both[averaged[i]]
        for steps in options.peer_steps:
            if steps != middle:
                found[last, steps] = self._sample(test, last, averaged[last], steps)
        points = [
            {
                "minutes": at["minutes"],
                "pictures": at["steps"] * options.peer_batch_size,
                "averaged": averaged[i],
                **found[i, middle][1],
            }
            for i, at in enumerate(times)
        ]
        sampling = [
            {"steps": steps, "seconds": seconds, **judged}
            for (which, steps), (seconds, judged) in sorted(found.items(), key=lambda item: item[0])
            if which == last
        ]
        return {**self._facts, "points": points, "sampling": sampling}

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _sample(self, test: Test, which: int, averaged: bool, steps: int) -> tuple[float, dict[str, float]]:
        from imagen_jax import grid

        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "pictures.npy"
            self._process.stdin.write(json.dumps([which, averaged, steps, str(file)]) + "\n")
            self._process.stdin.flush()
            seconds, images = self._answer(), np.load(file)
        name = f"imagen-pytorch-{which}-{'averaged' if averaged else 'plain'}-{steps}.png"
        shown = grid.labelled_grid([*images[:32]], [each["caption"] for each in test.examples[:32]])
        files.write(self._options.output / name, grid.encode_png(shown))
        return seconds, test.judge(images)

    def _answer(self) -> Any:
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(
                "--peer-python must be the Python of an environment in which imagen-pytorch 2.1 trains and samples; "
                f"it ended early: see {self._log.name}."
            )
        return json.loads(line)


def peer_data(options: Options, config: StageConfig, test: Test) -> dict[str, np.ndarray]:
    """Return the pictures of the split train at the size of our base, and the embeddings of their captions."""
    from imagen_jax import resize
    from imagen_jax.data import pipeline, sources

    source = sources.open_source(options.data, "train")
    images = np.empty((len(source), config.image_size, config.image_size, 3), np.uint8)
    captions = []
    for i, each in enumerate(pipeline.examples(source)):
        images[i] = np.rint(resize.area(each["image"], config.image_size))
        captions.append(each["caption"])
    distinct = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    texts = np.zeros((len(distinct), config.text.length, config.text.width), np.float16)
    for i, embedding in test.encoder.encode_ragged(list(distinct)):
        texts[i, : len(embedding)] = embedding[: config.text.length]
    return {
        "images": images,
        "rows": np.array([distinct[caption] for caption in captions]),
        "texts": texts,
        "asked": np.asarray(test.asked.embeddings * test.asked.mask[..., None], np.float16),
    }


# ---- figures ----


def plot(results: dict[str, dict]) -> bytes:
    """Return a PNG: quality against time of training, and against time of sampling."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for name, result in results.items():
        color = "tab:red" if name == NAMES[0] else "tab:gray"
        for row, (key, label) in enumerate((("all", "all right, %"), ("frechet", "Fréchet distance"))):
            left, right = axes[row]
            points, sampling = result["points"], result["sampling"]
            left.plot([p["minutes"] for p in points], [p[key] for p in points], "o-", color=color, label=name)
            right.plot(
                [s["seconds"] for s in sampling], [s[key] for s in sampling], "o-", color=color, label=name
            )
            for each in sampling:
                right.annotate(
                    f"{each['steps']}",
                    (each["seconds"], each[key]),
                    xytext=(4, 4),
                    textcoords="offset points",
                )
            left.set(xlabel="minutes of training", ylabel=label)
            right.set(
                xlabel="CPU seconds a picture, with the steps of sampling",
                ylabel=label,
                xscale="log",
            )
    for each in axes.flat:
        each.margins(0.12)
        each.set_ylim(0, None)
    axes[0, 0].legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    pyplot.close(figure)
    return buffer.getvalue()


def format_tables(results: dict[str, dict]) -> str:
    """Return Markdown tables of what was measured."""
    judged = ("color", "shape", "all", "frechet")
    lines = [
        f"{name}: {each['parameters'] / 1e6:.2f}M parameters, {each['versions']}"
        for name, each in results.items()
    ]
    lines += [
        "",
        "| | minutes | pictures | color % | shape % | all % | Fréchet distance |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += _rows(results, "points", ("minutes", "pictures", *judged))
    lines += [
        "",
        "| | steps | CPU s a picture | color % | shape % | all % | Fréchet distance |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += _rows(results, "sampling", ("steps", "seconds", *judged))
    return "\n".join(lines)


def _rows(results: dict[str, dict], part: str, columns: tuple[str, ...]) -> Iterator[str]:
    forms = {"pictures": ",", "steps": "d", "seconds": ".3g"}
    for name, result in results.items():
        for row in result[part]:
            yield (
                f"| {name} | " + " | ".join(format(row[key], forms.get(key, ".1f")) for key in columns) + " |"
            )


if __name__ == "__main__":
    program.run(main, lambda args: parsing.parse(Options, __doc__, args))
