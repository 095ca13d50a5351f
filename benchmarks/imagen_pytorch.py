"""Trains and samples a base stage beside imagen-pytorch 2.1, turn by turn, on the same CPU.

  python benchmarks/imagen_pytorch.py --peer-python ~/imagen-pytorch/bin/python
  python benchmarks/imagen_pytorch.py --peer-python ~/imagen-pytorch/bin/python --image-size 32 --batch-size 16

--peer-python is the Python of an environment made with `pip install torch einops beartype pydantic tqdm numpy pillow`
and `pip install --no-deps imagen-pytorch`. The text encoder, the augmentations and the trainer that imagen-pytorch also
imports are not used, and need not be installed.

Our network has 8.1M parameters at 64 pixels, 13.5M at 32, at random: speed does not depend on what they are.
imagen-pytorch's is as wide and attends where ours does, has as many blocks as bring its work within 1 % of what ours
takes by plain convolutions (which makes it 1 and 6 % larger), and leaves out its costlier options. Ours does 9 % less,
since it convolves enlarged pictures from the small ones. Both compute in float32. A train step is the loss of
eps, its gradient, Adam without decay (torch's default implementation, as in imagen-pytorch's trainer) and an average of
the parameters. Sampling is ancestral on the cosine schedule, guided (each step evaluates the network with and without
the caption) and dynamically thresholded. Each runs as it is used: ours with the memory allocator that its commands
choose, imagen-pytorch with the C library's, unless --same-malloc gives it ours. Other load on the machine slows torch's
threads, which wait for each other, far more than XLA's: look at the load, and compare on one thread (--threads 1) if it
is high.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from imagen_jax.cli import malloc

if __name__ == "__main__":
    malloc.restart()  # before anything imports JAX

from imagen_jax.cli import parsing, program
from imagen_jax.config import OptimConfig, ProcessConfig, SamplingConfig, StageConfig, TextConfig, UNetConfig
from imagen_jax.config.validation import validate

TEXT = TextConfig(width=384, length=24)
GUIDANCE_SCALE = 3.0
PEER = Path(__file__).parent / "peers/imagen_pytorch.py"
PERCENTILE = 0.95  # of dynamic thresholding; imagen-pytorch's default
NETWORKS = {
    64: UNetConfig((48, 96, 192), (1, 1, 1), (False, False, True), embedding=256, head_dim=64),
    32: UNetConfig((64, 128, 256), (1, 1, 1), (False, False, True), embedding=256, head_dim=64),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    peer_python: Path
    """Python of the environment that has imagen-pytorch 2.1."""
    image_size: Literal[64, 32] = 64
    """Pixels a side: 64 for networks of 8.1M parameters, 32 for 13.5M."""
    batch_size: int = 4
    """Images in a batch of training and of sampling; a guided step evaluates the network on twice as many."""
    steps: int = 10
    """Steps of sampling."""
    train_steps: int = 5
    """Steps of training that are timed together."""
    rounds: int = 5
    """Turns of each, after one to warm up."""
    threads: int = dataclasses.field(default_factory=lambda: available_cores())
    """That compute; by default one for each core."""
    same_malloc: bool = False
    """Give imagen-pytorch the memory allocator that ours has, instead of the C library's."""


def main(options: Options) -> None:
    for name in ("batch_size", "steps", "train_steps", "rounds", "threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(options, name)}.")
    load = os.getloadavg()[0]
    os.environ["NPROC"] = str(options.threads)  # where XLA looks for the number of its threads
    with Peer(options) as peer:  # first, since it is the one that may be missing
        own, facts = ours(stage_config(options), options)
        taken = {name: ([], []) for name in own}
        for _ in range(options.rounds):
            for name, run in own.items():
                taken[name][0].append(run())
                taken[name][1].append(peer.ask(name))
    print(f"Load average before: {load:.1f} on {available_cores()} cores.\n")
    print(format_table(options, {"imagen_jax": facts, "imagen-pytorch": peer.facts}, taken))


def stage_config(options: Options) -> StageConfig:
    """Return the stage that both libraries train and sample."""
    return validate(
        StageConfig(
            image_size=options.image_size,
            network=NETWORKS[options.image_size],
            process=ProcessConfig(schedule="cosine", prediction="eps"),
            sampling=SamplingConfig(
                sampler="ddpm",
                steps=options.steps,
                guidance_scale=GUIDANCE_SCALE,
                threshold="dynamic",
                percentile=PERCENTILE,
            ),
            text=TEXT,
            optim=OptimConfig(batch_size=options.batch_size, optimizer="adamw", weight_decay=0.0),
            compute_dtype="float32",
        )
    )


def ours(config: StageConfig, options: Options) -> tuple[dict[str, Callable[[], list[float]]], dict]:
    """Return functions that train and sample and return the seconds and CPU seconds they took, and facts."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_platforms", "cpu")
    from imagen_jax import TextCond, image_keys, sample_stage, sharding, stage
    from imagen_jax.planning.program import build
    from imagen_jax.training import packing
    from imagen_jax.training import state as states
    from imagen_jax.training.utilisation import model_flops_per_image

    rows, text = options.batch_size, config.text
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    abstract = states.abstract_state(config, mesh)
    held = states.packed_shapes(config, abstract)
    step, (_, shapes, _) = build(config, "train", mesh, held)
    state = states.init_state(config, abstract)
    params = jax.tree.map(jnp.copy, state.params)
    state = packing.pack_arrays(state, held)
    batch = jax.tree.map(lambda s: jax.device_put(jnp.ones(s.shape, s.dtype), s.sharding), shapes)
    made = stage.Stage(params, config)
    embeddings = jax.random.normal(jax.random.key(1), (rows, text.length, text.width))
    captions = TextCond(embeddings, jnp.ones((rows, text.length), bool))

    def train() -> None:
        nonlocal state
        for _ in range(options.train_steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)

    def sample() -> None:
        sample_stage(made, captions, image_keys(0, rows)).block_until_ready()

    def timed(run: Callable[[], None]) -> list[float]:
        start, busy = time.perf_counter(), time.process_time()
        run()
        return [time.perf_counter() - start, time.process_time() - busy]

    facts = {
        "parameters": states.count(params),
        "flops": model_flops_per_image(config) / 3,
        "threads": options.threads,
        "versions": f"jax {jax.__version__}, jaxlib {metadata.version('jaxlib')}",
    }
    train()
    sample()
    return {"train": lambda: timed(train), "sample": lambda: timed(sample)}, facts


class Peer:
    """imagen-pytorch in a Python of its own, which waits between measurements."""

    def __init__(self, options: Options) -> None:
        network = NETWORKS[options.image_size]
        width = network.channels[0]
        settings = {
            **{name: value for name, value in vars(options).items() if isinstance(value, int)},
            "guidance_scale": GUIDANCE_SCALE,
            "percentile": PERCENTILE,
            "text": [TEXT.length, TEXT.width],
            "width": width,
            "mults": [channels // width for channels in network.channels],
            "attention": network.attention,
            "heads": [network.channels[-1] // network.head_dim, network.head_dim],
        }
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            # -I: files here, which have the name of the package, are not found instead of it.
            [options.peer_python.expanduser(), "-I", PEER, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ if options.same_malloc else malloc.without(os.environ),
        )

    def __enter__(self) -> "Peer":
        try:
            self.facts = self._answer()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()

    def ask(self, name: str) -> list[float]:
        """Return seconds and CPU seconds of "train" or "sample"."""
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().split("\n")
            last = next((line for line in reversed(said) if line.strip()), "nothing")
            raise ValueError(
                "--peer-python must be the Python of an environment in which imagen-pytorch 2.1 trains and samples; "
                f"it ended saying: {last}"
            )
        return json.loads(line)


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def format_table(options: Options, facts: dict[str, dict], taken: dict[str, tuple[list, list]]) -> str:
    """Return Markdown tables of the networks, and of medians with the least and the most of all rounds.

    Args:
      options: of the run.
      facts: of each library.
      taken: "train" and "sample" -> seconds and CPU seconds of every round, ours and imagen-pytorch's.
    """
    size, batch = options.image_size, options.batch_size
    lines = [
        f"{size}x{size}, batches of {batch}, {options.rounds} rounds of {options.train_steps} training steps and "
        f"{options.steps} guided sampling steps.",
        "",
        "| | parameters | GFLOP an image, forward | threads | versions |",
        "|---|---:|---:|---:|---|",
    ]
    for name, each in facts.items():
        work = f"{each['parameters'] / 1e6:.2f}M | {each['flops'] / 1e9:.2f}"
        lines.append(f"| {name} | {work} | {each['threads']} | {each['versions']} |")
    lines += [
        "",
        "| | images/s, ours | imagen-pytorch | ratio, median of rounds | CPU seconds an image, ours | imagen-pytorch |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, sides in taken.items():
        images = batch * (options.train_steps if name == "train" else 1)
        (own, own_busy), (peer, peer_busy) = (zip(*side, strict=True) for side in sides)
        speeds = " | ".join(_spread([images / s for s in side]) for side in (own, peer))
        ratios = _spread([theirs / mine for mine, theirs in zip(own, peer, strict=True)])
        busy = " | ".join(f"{statistics.median(side) / images:.3g}" for side in (own_busy, peer_busy))
        lines.append(f"| {name} | {speeds} | {ratios} | {busy} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    program.run(main, lambda args: parsing.parse(Options, __doc__, args))
