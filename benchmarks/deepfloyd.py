"""Runs a network of DeepFloyd IF and guided steps of its sampler beside diffusers, turn by turn, on one device.

  python benchmarks/deepfloyd.py --peer-python ~/diffusers/bin/python
  python benchmarks/deepfloyd.py --peer-python ~/diffusers/bin/python --stage II
  python benchmarks/deepfloyd.py --peer-python ~/diffusers/bin/python --device gpu --width 192 --batch-size 4 --compile

--peer-python is the Python of an environment made with `pip install torch diffusers transformers accelerate`. The
network is that of stage I, at random, with half the widths of IF-I-M unless --width says otherwise, or that of stage II
with a quarter of those of IF-II-M; diffusers makes it, and it is loaded here from the files that diffusers writes. Both
compute from 77 tokens of T5, on a CPU in float32 and on a GPU in bfloat16. A guided step evaluates the network with and
without the caption, and thresholds dynamically.

In its turn each side runs twice, and the second run counts: the first after a pause pays for memory and caches that the
other side has used in the meantime.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

STEPS, TOKENS, SCALE = 4, 77, 7.0
COMMON = {
    "act_fn": "gelu",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64,
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim": 4096,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_num_groups": 32,
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
}
NETWORKS = {
    "I": {
        "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
        "in_channels": 3,
        "layers_per_block": 3,
        "sample_size": 64,
    },
    "II": {
        "down_block_types": ["ResnetDownsampleBlock2D"] * 3 + ["SimpleCrossAttnDownBlock2D"] * 2,
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 2 + ["ResnetUpsampleBlock2D"] * 3,
        "class_embed_type": "timestep",
        "in_channels": 6,
        "layers_per_block": [2, 2, 3, 3, 3],
        "mid_block_scale_factor": 2**0.5,
        "resnet_out_scale_factor": 2**0.5,
        "resnet_skip_time_act": True,
        "sample_size": 256,
        "time_embedding_act_fn": "gelu",
    },
}
WIDTHS = {"I": (1, 2, 3, 4), "II": (1, 2, 4, 6, 6)}  # of the levels, in those of the first
SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "dynamic_thresholding_ratio": 0.95,
    "num_train_timesteps": 1000,
    "thresholding": True,
    "variance_type": "learned_range",
}
CAPS = {"I": 1.5, "II": 1.0}
LEVEL = 250  # of the noise in the low-res image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    peer_python: Path
    """Python of the environment that has diffusers."""
    stage: Literal["I", "II"] = "I"
    """Whose network: of 64 pixels, or of 256 with the picture of 64 enlarged."""
    batch_size: int = 1
    """Images; a guided step evaluates the network on twice as many."""
    rounds: int = 5
    """Turns of each."""
    threads: int = len(os.sched_getaffinity(0))
    """That compute on a CPU; by default one for each core."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What computes."""
    width: int | None = None
    """Channels of the first level, a multiple of 32; by default 96, for stage II 32. IF-I-M has 192, IF-II-M 128."""
    compile: bool = False
    """Compile the network of diffusers with torch.compile, which takes minutes; else it runs as it is."""
    same_malloc: bool = False
    """Give diffusers the memory allocator that ours has, instead of the C library's."""


def main(options: Options) -> None:
    if options.width is None:
        options = dataclasses.replace(options, width={"I": 96, "II": 32}[options.stage])
    if options.width < 32 or options.width % 32:
        raise ValueError(f"--width must be a multiple of 32; got {options.width}.")
    from imagen_jax.cli import malloc

    os.environ["NPROC"] = str(options.threads)  # where XLA looks for the number of its threads
    taken = {"network": ([], []), "step": ([], [])}
    with tempfile.TemporaryDirectory() as directory:
        settings = dataclasses.asdict(options) | {"peer_python": "", "directory": directory}
        command = [options.peer_python.expanduser(), __file__, "peer", json.dumps(settings)]
        environment = os.environ if options.same_malloc else malloc.without(os.environ)
        peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            versions = _answer(peer)
            runs, facts = ours(directory, options)
            for _ in range(options.rounds):
                for name, run in runs.items():
                    run()
                    start = time.perf_counter()
                    run()
                    taken[name][0].append(time.perf_counter() - start)
                    print(name, file=peer.stdin, flush=True)
                    taken[name][1].append(_answer(peer))
        finally:
            peer.kill()
            peer.wait()
    where = f"{options.threads} threads" if options.device == "cpu" else "the GPU"
    print(f"{facts}; {versions}. Batches of {options.batch_size} on {where}, {options.rounds} rounds.")
    print()
    print("| | seconds, ours | diffusers | ratio, median of rounds |\n|---|---:|---:|---:|")
    for name, (own, theirs) in taken.items():
        scale = STEPS if name == "step" else 1
        ratios = [b / a for a, b in zip(own, theirs, strict=True)]
        columns = [_spread([s / scale for s in own]), _spread([s / scale for s in theirs]), _spread(ratios)]
        print(f"| {name} | {' | '.join(columns)} |")


def _answer(peer: subprocess.Popen):
    line = peer.stdout.readline()
    if not line:
        raise ValueError("--peer-python must be the Python of an environment with torch and diffusers; it ended.")
    return json.loads(line)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def ours(directory: str, options: Options):
    """Return functions that evaluate the network and sample, compiled, and facts in words."""
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_platforms", "cpu" if options.device == "cpu" else "cuda")
    from imagen_jax import TextCond, image_keys, sample_stage
    from imagen_jax.config import override
    from imagen_jax.interop import deepfloyd

    stage, rows = deepfloyd.load_stage(directory), options.batch_size
    if options.device == "gpu":
        stage = stage.replace(params=jax.tree.map(lambda a: a.astype(jnp.bfloat16), stage.params))
    text = TextCond(jax.random.normal(jax.random.key(0), (rows, TOKENS, 4096)), jnp.ones((rows, TOKENS), bool))
    size, is_sr = stage.config.image_size, stage.config.is_super_resolution
    z, t, keys = jnp.zeros((rows, size, size, 3)), jnp.full((rows,), 500), image_keys(0, rows)
    shown = {"low_res": z, "noise_level": jnp.full((rows,), LEVEL)} if is_sr else {}
    small = {"low_res": jnp.zeros((rows, size // 4, size // 4, 3))} if is_sr else {}
    sampling = override(stage.config.sampling, {"steps": STEPS, "guidance_scale": SCALE})
    runs = {
        "network": lambda: jax.block_until_ready(deepfloyd.predict(stage, z, t, text, **shown)),
        "step": lambda: sample_stage(
            stage, text, keys, sampling=sampling, negative=text, **small
        ).block_until_ready(),
    }
    for run in runs.values():
        run()
    count = sum(leaf.size for leaf in jax.tree.leaves(stage.params))
    return runs, f"{count / 1e6:.1f}M parameters, jax {jax.__version__} on {jax.devices()[0].device_kind}"


def peer(settings: str) -> None:
    """Write the network for the other side, and answer how long what a line of input names takes here."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    import diffusers
    import torch

    given = json.loads(settings)
    device, dtype = ("cpu", torch.float32) if given["device"] == "cpu" else ("cuda", torch.bfloat16)
    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    which = given["stage"]
    widths = [given["width"] * n for n in WIDTHS[which]]
    sizes = {"attention_head_dim": 32 if given["width"] < {"I": 192, "II": 128}[which] else 64}
    sizes |= {"cross_attention_dim": widths[-1], "block_out_channels": widths}
    sizes |= {"time_embedding_dim": widths[-1]} if which == "II" else {}
    model = diffusers.UNet2DConditionModel(**sizes, **COMMON, **NETWORKS[which]).eval()
    scheduler = diffusers.DDPMScheduler(sample_max_value=CAPS[which], **SCHEDULER)
    model.save_pretrained(Path(given["directory"]) / "unet")
    scheduler.save_pretrained(Path(given["directory"]) / "scheduler")
    model.to(device, dtype)
    if given["compile"]:
        model.forward = torch.compile(model.forward)
    num = given["batch_size"]
    text = torch.randn(2 * num, TOKENS, 4096, dtype=dtype, device=device)
    size = NETWORKS[which]["sample_size"]
    start = torch.randn(num, 3, size, size, dtype=dtype, device=device)
    low_res, levels = torch.zeros_like(start), torch.full((2 * num,), LEVEL, device=device)

    def predict(z, t, text):
        if which == "I":
            return model(z, t, text).sample
        enlarged = torch.cat([low_res] * (len(z) // num))
        return model(torch.cat([z, enlarged], dim=1), t, text, class_labels=levels[: len(z)]).sample

    def network() -> None:
        predict(start, torch.full((num,), 500, device=device), text[:num])

    def step() -> None:
        scheduler.set_timesteps(STEPS)
        z = start
        for t in scheduler.timesteps:
            both = predict(torch.cat([z, z]), t, text)
            (eps, variance), (null, _) = (half.split(3, dim=1) for half in both.chunk(2))
            z = scheduler.step(torch.cat([null + SCALE * (eps - null), variance], dim=1), t, z).prev_sample

    def timed(run) -> float:
        run()
        begin = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    runs = {"network": network, "step": step}
    with torch.inference_mode():
        for run in (network, step, network, step):  # twice: a compiled network is compiled for both batches
            run()
        print(json.dumps(f"diffusers {diffusers.__version__}, torch {torch.__version__}"), file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(timed(runs[line.strip()])), file=answers, flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        peer(sys.argv[2])
    else:
        from imagen_jax.cli import malloc

        malloc.restart()  # before anything imports JAX
        from imagen_jax.cli import parsing, program

        program.run(main, lambda args: parsing.parse(Options, __doc__, args))
