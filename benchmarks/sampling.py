"""Times the sampler of a base stage, alone or beside imagen-pytorch's on the same CPU.

  python benchmarks/sampling.py
  python benchmarks/sampling.py --peer-python ~/imagen-pytorch/bin/python --batch-size 1

The stage has about eight million parameters, at random: speed does not depend on what they are. Both
libraries take ancestral steps on the cosine schedule in float32, guided (each step evaluates the network
with and without the caption) and dynamically thresholded. imagen-pytorch's network is as wide and attends
where ours does, has as many blocks as bring its work to ours, and leaves out its costlier options. The two
take turns in one run. Even so, other load on the machine slows torch's threads, which wait for each
other, far more than XLA's: look at the load, and compare on one thread (--threads 1) if it is high.
"""

import dataclasses
import inspect
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from imagen_jax.cli import parsing, program
from imagen_jax.config import ProcessConfig, SamplingConfig, StageConfig, TextConfig, UNetConfig
from imagen_jax.config.validation import validate

TEXT = TextConfig(width=384, length=24)
GUIDANCE_SCALE = 3.0
PERCENTILE = 0.95  # of dynamic thresholding; imagen-pytorch's default
NETWORK = UNetConfig(
    channels=(48, 96, 192),
    num_res_blocks=(1, 1, 1),
    attention=(False, False, True),
    embedding=256,
    head_dim=64,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    image_size: int = 64
    batch_size: int = 4
    """Images sampled at once; a guided step evaluates the network on twice as many."""
    steps: int = 10
    repeats: int = 5
    """Timed runs of each library, after one to warm up."""
    threads: int = dataclasses.field(default_factory=lambda: available_cores())
    """That compute, on a CPU; by default one for each core."""
    peer_python: Path | None = None
    """Python of an environment that has imagen-pytorch 2.1; compares the two, on the CPU."""


def main(options: Options) -> None:
    for name in ("batch_size", "steps", "repeats", "threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 1; got {getattr(options, name)}.")
    load = os.getloadavg()[0]
    os.environ["NPROC"] = str(options.threads)  # where XLA looks for the number of its threads
    config = validate(
        StageConfig(
            image_size=options.image_size,
            network=NETWORK,
            process=ProcessConfig(schedule="cosine", prediction="eps"),
            sampling=SamplingConfig(
                sampler="ddpm",
                steps=options.steps,
                guidance_scale=GUIDANCE_SCALE,
                threshold="dynamic",
                percentile=PERCENTILE,
            ),
            text=TEXT,
            compute_dtype="float32",
        )
    )
    if options.peer_python is None:
        sample, facts = ours(config, options)
        runs = {"imagen_jax": (facts, [sample() for _ in range(options.repeats)])}
    else:
        with Peer(options) as peer:  # first, since it is the one that may be missing
            sample, facts = ours(config, options, platform="cpu")
            pairs = [(sample(), peer.sample()) for _ in range(options.repeats)]
        own_seconds, peer_seconds = zip(*pairs, strict=True)
        runs = {"imagen_jax": (facts, own_seconds), "imagen-pytorch": (peer.facts, peer_seconds)}
    print(f"Load average before: {load:.1f} on {available_cores()} cores.\n")
    print(format_table(runs, options))


def ours(
    config: StageConfig, options: Options, platform: str | None = None
) -> tuple[Callable[[], list[float]], dict]:
    """A function that samples a batch and returns the seconds and the CPU seconds it took, and facts."""
    import jax
    import jax.numpy as jnp

    from imagen_jax import TextCond, image_keys, sample_stage, stage
    from imagen_jax.structs import Cond

    if platform:
        jax.config.update("jax_platforms", platform)
    params = stage.init(config, jax.random.key(0))
    shape = (options.batch_size, config.text.length)
    embeddings = jax.random.normal(jax.random.key(1), (*shape, config.text.width))
    text = TextCond(embeddings, jnp.ones(shape, bool))
    made = stage.Stage(params, config)

    def sample() -> list[float]:
        start, busy = time.perf_counter(), time.process_time()
        sample_stage(made, text, image_keys(0, options.batch_size)).block_until_ready()
        return [time.perf_counter() - start, time.process_time() - busy]

    def forward(params: Any, z_t: jax.Array, logsnr_t: jax.Array, text: TextCond) -> jax.Array:
        return stage.network(config).apply({"params": params}, z_t, logsnr_t, Cond(text))

    z_t = jnp.zeros((1, config.image_size, config.image_size, config.image_channels))
    one = jax.tree.map(lambda a: a[:1], text)
    compiled = jax.jit(forward).lower(params, z_t, jnp.zeros(1), one).compile()
    sample()
    return sample, {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "flops": compiled.cost_analysis()["flops"],
        "threads": options.threads if jax.default_backend() == "cpu" else jax.default_backend(),
        "versions": f"jax {jax.__version__}, jaxlib {metadata.version('jaxlib')}",
    }


class Peer:
    """imagen-pytorch in a Python of its own, which waits between measurements."""

    def __init__(self, options: Options) -> None:
        settings = {
            "image_size": options.image_size,
            "batch_size": options.batch_size,
            "steps": options.steps,
            "guidance_scale": GUIDANCE_SCALE,
            "percentile": PERCENTILE,
            "text": [TEXT.length, TEXT.width],
            "width": NETWORK.channels[0],
            "mults": [channels // NETWORK.channels[0] for channels in NETWORK.channels],
            "attention": NETWORK.attention,
            "heads": [NETWORK.channels[-1] // NETWORK.head_dim, NETWORK.head_dim],
            "threads": options.threads,
        }
        source = f"{inspect.getsource(serve_peer)}\nserve_peer({json.dumps(json.dumps(settings))})"
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [options.peer_python.expanduser(), "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
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

    def sample(self) -> list[float]:
        """Seconds and CPU seconds for one batch."""
        self.process.stdin.write("sample\n")
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
                "--peer-python must be the Python of an environment in which imagen-pytorch 2.1 samples; "
                f"it ended saying: {last}"
            )
        return json.loads(line)


def serve_peer(settings: str) -> None:
    """What the other Python runs: facts, then how long a batch took for every line of input.

    It is sent there as source, and so uses nothing of this file.
    """
    import json
    import os
    import sys
    import time
    from importlib import metadata

    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers
    from torch.utils.flop_counter import FlopCounterMode

    # imagen-pytorch asks the hub for the width of a T5 on import; the text here has a width of its own.
    transformers.T5Config.from_pretrained = lambda *_, **__: transformers.T5Config(d_model=768)
    from imagen_pytorch import Imagen, Unet

    given = json.loads(settings)
    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    length, width = given["text"]
    heads, head_dim = given["heads"]
    unet = Unet(
        dim=given["width"],
        dim_mults=tuple(given["mults"]),
        text_embed_dim=width,
        max_text_len=length,  # shorter texts are padded to it
        num_resnet_blocks=2,  # each level has one more
        layer_attns=tuple(given["attention"]),
        layer_cross_attns=tuple(given["attention"]),
        attn_heads=heads,
        attn_dim_head=head_dim,
        attn_pool_text=False,
        init_cross_embed=False,
        init_conv_kernel_size=3,
        use_global_context_attn=False,
        pixel_shuffle_upsample=False,
        memory_efficient=False,
    )
    imagen = Imagen(
        unets=unet,
        image_sizes=given["image_size"],
        timesteps=given["steps"],
        text_embed_dim=width,
        cond_drop_prob=0.1,
        noise_schedules="cosine",
        pred_objectives="noise",
        dynamic_thresholding=True,
        dynamic_thresholding_percentile=given["percentile"],
    ).eval()
    unet = imagen.unets[0]
    text = torch.randn(given["batch_size"], length, width)

    def answer(value: object) -> None:
        print(json.dumps(value), file=answers, flush=True)

    def sample() -> list[float]:
        start, busy = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            imagen.sample(
                text_embeds=text,
                cond_scale=given["guidance_scale"],
                cfg_remove_parallel_component=False,
                use_tqdm=False,
            )
        return [time.perf_counter() - start, time.process_time() - busy]

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        z_t = torch.zeros(1, 3, given["image_size"], given["image_size"])
        unet(z_t, torch.zeros(1), text_embeds=text[:1], text_mask=torch.ones(1, length, dtype=torch.bool))
    sample()
    answer({
        "parameters": sum(parameter.numel() for parameter in unet.parameters()),
        "flops": counter.get_total_flops(),
        "threads": torch.get_num_threads(),
        "versions": f"imagen-pytorch {metadata.version('imagen-pytorch')}, torch {torch.__version__}",
    })  # fmt: skip
    for _ in sys.stdin:
        answer(sample())


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def format_table(runs: dict[str, tuple[dict, list[list[float]]]], options: Options) -> str:
    """A Markdown table of medians, with the slowest and the fastest run in brackets."""
    size, batch, steps = options.image_size, options.batch_size, options.steps
    medians = {name: statistics.median(s for s, _ in taken) for name, (_, taken) in runs.items()}
    lines = [
        f"{size}x{size}, batches of {batch}, {steps} guided steps, median of {options.repeats} runs.",
        "GFLOP: one image through the network once, as XLA and as torch count them (torch: products only).",
        "",
        "| | parameters | GFLOP | images/s | ratio | ms per step | CPU s per image | threads | versions |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, (facts, taken) in runs.items():
        seconds, busy = zip(*taken, strict=True)
        speed = [batch / s for s in (medians[name], max(seconds), min(seconds))]
        ratio = max(medians.values()) / medians[name]
        lines.append(
            f"| {name} | {facts['parameters'] / 1e6:.2f}M | {facts['flops'] / 1e9:.2f} "
            f"| {speed[0]:.3g} ({speed[1]:.3g} to {speed[2]:.3g}) | {ratio:.2f} "
            f"| {1000 * medians[name] / steps:.0f} | {statistics.median(busy) / batch:.2f} "
            f"| {facts['threads']} | {facts['versions']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    program.run(main, lambda args: parsing.parse(Options, __doc__, args))
