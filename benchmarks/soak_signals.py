"""Sends SIGINT and SIGTERM to every command at random moments, and checks that each ends as it should.

  python benchmarks/soak_signals.py --workdir /tmp/signals --signals 100

Prepares a small data set of shapes, embeds its captions, trains a tiny stage, samples, evaluates and sweeps it: first
undisturbed, then with a signal after a random time. A command has to end within 10 seconds with status 130 (SIGINT) or
143 (SIGTERM) and one line on stderr, without a traceback; or with 0, if it was done already. What it has left is then
completed by the same command, and compared with the undisturbed result. A signal before Python runs the first line of
the script (some hundredths of a second) ends Python itself; these are counted apart.
"""

import dataclasses
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from imagen_jax.cli import parsing, program

ROOT = Path(__file__).resolve().parent.parent
PRESET = """
from imagen_jax.config import *

def get_config():
    return (StageConfig(
        image_size=8, network=UNetConfig((8,), (1,), (False,), embedding=32),
        sampling=SamplingConfig(sampler="unipc", steps=4, guidance_scale=2.0),
        text=TextConfig(encoder={encoder!r}, width=32, length=12), data=DataConfig(path={data!r}),
        optim=OptimConfig(batch_size=8, warmup_steps=2, learning_rate=1e-3, ema_decay=0.9),
        run=RunConfig(num_steps=30, checkpoint_every=10, log_every=5, validate_every=15, sample_every=15),
    ),)
"""
COMMANDS = ("prepare", "embed", "train", "sample", "evaluate", "sweep", "plan")
LIMIT_S = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    workdir: Path
    """Directory for everything; must not exist or be empty."""
    signals: int = 100
    """How many signals are sent, over all commands in turn."""
    commands: tuple[str, ...] = COMMANDS
    """Commands to send them to."""
    complete: int = 1
    """Run every so many-th of the commands again after its signal, and compare the result; 0: none."""
    moments: int = 0
    """Seed of the moments."""


class Place:
    """A data set, its embeddings and a run, made by the commands."""

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.data, self.run = root / "data", root / "run"
        encoder = str(ROOT / "tests/goldens/tiny_bert")
        self.preset = root / "preset.py"
        self.preset.write_text(PRESET.format(encoder=encoder, data=str(self.data)))

    def command(self, name: str) -> list[str]:
        sampled = ["--workdir", self.run, "--output", self.root / name]
        arguments = {
            "prepare": [
                "prepare_data.py", "--shapes", "single", "--output", self.data, "--num-train", 900,
                "--num-validation", 16, "--num-test", 16, "--num-workers", 2,
            ],
            "embed": ["embed_text.py", "--preset", self.preset],
            "train": ["train.py", "--preset", self.preset, "--stage", "base", "--workdir", self.run],
            "sample": ["sample.py", *sampled, "--prompts", "a red star", "a blue ring", "--num", 4, "--batch-size", 2],
            "evaluate": ["evaluate.py", *sampled, "--data", self.data, "--num", 8, "--batch-size", 4],
            "sweep": [
                "sweep.py", *sampled, "--data", self.data, "--num", 4, "--steps", 2, 3, "--guidance-scale", 1, 2,
            ],
            "plan": ["plan.py", "--preset", self.preset, "--batch", 8],
        }[name]  # fmt: skip
        script, *rest = map(str, arguments)
        return [sys.executable, str(ROOT / "scripts" / script), *rest]

    def result(self, name: str) -> dict[str, str]:
        """Hashes of what a command has made, by file or by parameter, without times and paths."""
        if name == "train":
            import jax
            import numpy as np

            from imagen_jax import load_stage

            leaves = jax.tree.leaves(load_stage(self.run / "base").params)
            return {str(i): _digest(np.asarray(leaf).tobytes()) for i, leaf in enumerate(leaves)}
        if name == "embed":
            from imagen_jax.text.cache import EmbeddingCache, directory_of

            directory = directory_of(self.data)
            (fingerprint,) = (path.name for path in directory.iterdir() if path.is_dir())
            return {"captions": str(len(EmbeddingCache.open(directory, fingerprint)))}
        folder = {"prepare": self.data, "plan": self.root / "none"}.get(name, self.root / name)
        files = sorted(
            path for path in folder.rglob("*") if path.is_file() and "embeddings" not in path.parts
        )
        return {str(path.relative_to(folder)): _digest(_content(path)) for path in files if _is_same(path)}


def _is_same(path: Path) -> bool:
    return ".png" in path.suffixes or ".array_record" in path.name or path.name == "alignment.json"


def _content(path: Path) -> bytes:
    """The bytes of a file; of a PNG, whose record names the directory, those of its pixels."""
    if ".png" not in path.suffixes:
        return path.read_bytes()
    from PIL import Image

    with Image.open(path) as image:
        return image.tobytes()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def start(place: Place, name: str, *, uses_cache: bool = False) -> subprocess.Popen:
    """Starts a command; without a cache of compiled programs it compiles, and a signal finds it at that."""
    own = {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    if uses_cache:
        own |= {
            "JAX_ENABLE_COMPILATION_CACHE": "true",
            "JAX_COMPILATION_CACHE_DIR": str(place.root.parent / "compiled"),
        }
    environment = os.environ | own
    return subprocess.Popen(
        place.command(name), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(place: Place, name: str, *, uses_cache: bool = False) -> None:
    process = start(place, name, uses_cache=uses_cache)
    out, err = process.communicate()
    if process.returncode:
        raise ValueError(f"{name} must end with status 0; got {process.returncode}: {err}{out}")


def interrupt(place: Place, name: str, number: int, moment: float) -> tuple[str, float]:
    """(what came of the signal, seconds until the command had ended)."""
    process = start(place, name)
    time.sleep(moment)
    begin = time.monotonic()
    process.send_signal(number)
    try:
        _, err = process.communicate(timeout=10 * LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "DID NOT END", time.monotonic() - begin
    took = time.monotonic() - begin
    status, lines = process.returncode, [line for line in err.splitlines() if line]
    if moment < 0.5 and status in (-number, 1, 128 + number) and (not lines or "KeyboardInterrupt" in err):
        return "before the script", took
    if "Traceback" in err:
        return f"TRACEBACK: {err[-300:]}", took
    if status == 0:
        return "was done", took
    if status != 128 + number:
        return f"STATUS {status}: {err[-300:]}", took
    told = [line for line in lines if "ended by SIG" in line]
    others = [line for line in lines if "ended by SIG" not in line and "warning:" not in line]
    if len(told) != 1 or others:
        return f"LINES {lines}", took
    return "too late" if took > LIMIT_S else "ended", took


def main(options: Options) -> int:
    unknown = set(options.commands) - set(COMMANDS)
    if unknown or not options.commands or options.signals < 1 or options.complete < 0:
        raise ValueError(
            f"--commands must be among {', '.join(COMMANDS)}, --signals at least 1 and --complete at least 0."
        )
    if options.workdir.exists() and any(options.workdir.iterdir()):
        raise ValueError(f"--workdir must not exist or be empty; got {options.workdir}.")
    whole, seconds, expected = Place(options.workdir.resolve() / "whole"), {}, {}
    for name in COMMANDS:
        begin = time.monotonic()
        finish(whole, name)
        seconds[name], expected[name] = time.monotonic() - begin, whole.result(name)
    print("undisturbed:", ", ".join(f"{name} {seconds[name]:.1f} s" for name in COMMANDS), flush=True)
    rng, table = random.Random(options.moments), []
    for i in range(options.signals):
        name = options.commands[i % len(options.commands)]
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        moment = rng.uniform(0, seconds[name])
        place = Place(options.workdir.resolve() / f"signal-{i}")
        for before in COMMANDS[: COMMANDS.index(name)]:
            _copy(before, whole, place)
        came, took = interrupt(place, name, number, moment)
        same = ""
        if (
            options.complete
            and i // len(options.commands) % options.complete == 0
            and name in ("prepare", "embed", "train")
        ):
            finish(place, name, uses_cache=True)
            same = "same" if place.result(name) == expected[name] else "DIFFERENT"
        elif name in (
            "sample",
            "evaluate",
            "sweep",
        ):  # what is there is whole; a second run would write beside it
            found = place.result(name)
            same = "whole" if all(expected[name].get(file) == found[file] for file in found) else "DIFFERENT"
        table.append((name, signal.Signals(number).name, came, took, same))
        print(
            f"{i:3} {name:8} {table[-1][1]:7} after {moment:5.2f} s: {came} in {took:.1f} s {same}",
            flush=True,
        )
        shutil.rmtree(place.root)
    return report(table)


def _copy(name: str, whole: Place, place: Place) -> None:
    folder = {"prepare": "data", "train": "run"}.get(name)
    if folder is not None and not (place.root / folder).exists():
        shutil.copytree(whole.root / folder, place.root / folder)


def report(table: list[tuple[str, str, str, float, str]]) -> int:
    """Prints a row for each command; returns 1 if anything went wrong, else 0."""
    wrong = [
        row for row in table if row[2] not in ("ended", "was done", "before the script") or "DIFF" in row[4]
    ]
    print("| command | signals | ended | was done | before the script | wrong | longest s |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name in dict.fromkeys(row[0] for row in table):
        rows = [row for row in table if row[0] == name]
        counts = [sum(row[2] == kind for row in rows) for kind in ("ended", "was done", "before the script")]
        bad = sum(row in wrong for row in rows)
        print(
            f"| {name} | {len(rows)} | {' | '.join(map(str, counts))} | {bad} | {max(row[3] for row in rows):.1f} |"
        )
    return 1 if wrong else 0


if __name__ == "__main__":
    program.run(main, lambda args: parsing.parse(Options, __doc__, args))
