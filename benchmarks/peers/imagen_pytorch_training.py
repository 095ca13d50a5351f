"""Trains imagen-pytorch on pictures for a given time, and samples from the parameters that it had on the way.

benchmarks/time_to_quality.py starts it in the Python of an environment that has imagen-pytorch, so it imports nothing
of imagen_jax. Its argument is JSON, its answers are lines of JSON: first facts about the network, then a line for each
time of `minutes`, which counts from the start of this program. After the last it reads lines of JSON: the number of a
time, whether to sample from the averaged parameters, steps of sampling, and a file for the pictures; it answers with
the seconds of CPU time a picture. The parameters are kept in the file `kept`; where it exists nothing is trained.
"""

import time

START = time.monotonic()

import copy  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import runpy  # noqa: E402
import sys  # noqa: E402
from importlib import metadata  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
runpy.run_path(str(Path(__file__).with_name("stand_ins.py")))
from imagen_pytorch import Imagen, ImagenTrainer, Unet  # noqa: E402

BATCH = 40  # of sampling

given = json.loads(sys.argv[1])
if given["cores"]:
    os.sched_setaffinity(0, given["cores"])
torch.set_num_threads(given["threads"])
torch.manual_seed(0)
data = np.load(given["data"])
images, rows, texts = data["images"], data["rows"], data["texts"]
unet = Unet(
    dim=given["width"],
    dim_mults=(1, 2, 4),
    text_embed_dim=texts.shape[-1],
    max_text_len=texts.shape[1],  # shorter texts are padded to it
    layer_attns=(False, True, True),  # as in the package's own examples: all levels but the first
    layer_cross_attns=(False, True, True),
)
imagen = Imagen(unets=unet, image_sizes=images.shape[1], text_embed_dim=texts.shape[-1])
trainer = ImagenTrainer(imagen, lr=given["learning_rate"])


def answer(value: object) -> None:
    print(json.dumps(value), file=answers, flush=True)


answer({
    "parameters": sum(parameter.numel() for parameter in unet.parameters()),
    "versions": f"imagen-pytorch {metadata.version('imagen-pytorch')}, torch {torch.__version__}",
})  # fmt: skip
kept, rng, step = Path(given["kept"]), np.random.default_rng(0), 0
made, times, snapshots = torch.load(kept) if kept.exists() else (given, [], [])
if made != given:
    sys.exit(f"{kept} was made with other options: remove it, or choose another --output")
for minutes in [] if kept.exists() else given["minutes"]:
    trainer.train()
    while time.monotonic() - START < 60 * minutes:
        chosen = rng.integers(len(images), size=given["batch_size"])
        batch = torch.from_numpy(images[chosen]).permute(0, 3, 1, 2) / 255
        loss = trainer(batch, text_embeds=torch.from_numpy(texts[rows[chosen]]).float(), unet_number=1)
        trainer.update(unet_number=1)
        step += 1
        if step % 100 == 0:
            print(f"step {step}, {(time.monotonic() - START) / 60:.1f} minutes, loss {loss:.4f}", flush=True)
    average = trainer.get_ema_unet(1).ema_model
    plain = trainer.imagen.unets[0]
    snapshots.append({True: copy.deepcopy(average.state_dict()), False: copy.deepcopy(plain.state_dict())})
    times.append({"minutes": (time.monotonic() - START) / 60, "steps": step})
if not kept.exists():
    torch.save((given, times, snapshots), kept.with_suffix(".part"))
    kept.with_suffix(".part").rename(kept)
for each in times:
    answer(each)

trainer.eval()
asked = torch.from_numpy(data["asked"]).float()
for line in sys.stdin:
    which, is_averaged, steps, file = json.loads(line)
    trainer.get_ema_unet(1).ema_model.load_state_dict(snapshots[which][is_averaged])
    trainer.imagen.noise_schedulers[0].num_timesteps = steps
    busy = time.process_time()
    made = [
        trainer.sample(text_embeds=asked[i : i + BATCH], cond_scale=given["guidance_scale"], use_tqdm=False)
        for i in range(0, len(asked), BATCH)
    ]
    np.save(file, (torch.cat(made).permute(0, 2, 3, 1) * 2 - 1).numpy())
    answer((time.process_time() - busy) / len(asked))
