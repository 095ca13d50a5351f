"""Trains and samples with imagen-pytorch for every line of input, and answers how long each took.

benchmarks/imagen_pytorch.py starts it in the Python of an environment that has imagen-pytorch, so it imports nothing of
imagen_jax. Its argument is JSON, its answers are lines of JSON: first facts about the network, then the seconds and CPU
seconds of each "train" or "sample" that it is asked for.
"""

import json
import runpy
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
runpy.run_path(str(Path(__file__).with_name("stand_ins.py")))
from imagen_pytorch.imagen_pytorch import Imagen, Unet  # noqa: E402

given = json.loads(sys.argv[1])
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
)
unet = imagen.unets[0]
size, rows = given["image_size"], given["batch_size"]
text, images = torch.randn(rows, length, width), torch.rand(rows, 3, size, size)
average = [parameter.detach().clone() for parameter in unet.parameters()]
optimizer = torch.optim.Adam(unet.parameters(), lr=1e-4)


def train() -> None:
    imagen.train()
    for _ in range(given["train_steps"]):
        imagen(images, text_embeds=text, unet_number=1).backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(unet.parameters()), 1e-3)


def sample() -> None:
    imagen.eval()
    with torch.inference_mode():
        imagen.sample(
            text_embeds=text,
            cond_scale=given["guidance_scale"],
            cfg_remove_parallel_component=False,
            use_tqdm=False,
        )


def answer(value: object) -> None:
    print(json.dumps(value), file=answers, flush=True)


imagen.eval()
with torch.inference_mode(), FlopCounterMode(display=False) as counter:
    z_t = torch.zeros(1, 3, size, size)
    unet(z_t, torch.zeros(1), text_embeds=text[:1], text_mask=torch.ones(1, length, dtype=torch.bool))
train()
sample()
answer({
    "parameters": sum(parameter.numel() for parameter in unet.parameters()),
    "flops": counter.get_total_flops(),
    "threads": torch.get_num_threads(),
    "versions": f"imagen-pytorch {metadata.version('imagen-pytorch')}, torch {torch.__version__}",
})  # fmt: skip
for line in sys.stdin:
    start, busy = time.perf_counter(), time.process_time()
    {"train": train, "sample": sample}[line.strip()]()
    answer([time.perf_counter() - start, time.process_time() - busy])
