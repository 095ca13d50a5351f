"""Makes tests/goldens/old_stage.tar.xz with the code of before config.json had a version (commit 7979c59).

  git worktree add /tmp/old 7979c59; python tests/goldens/make_old_stage.py /tmp/old

Run with jax 0.10.2, flax 0.12.8, optax 0.2.8, orbax-checkpoint 0.12.8, Python 3.11 on CPU. The archive holds:

  data/              eight pictures with captions
  run/base/          a stage trained for 4 steps
  run/sampling.json  as scripts/sweep.py stores it
  run/picture.png    sampled from the stage with these options
  losses.json        of steps 5 and 6 of the same run
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

GOLDENS = Path(__file__).resolve().parent
PRESET = """
from imagen_jax.config import *

def get_config():
    return (StageConfig(
        image_size=8, network=UNetConfig((8,), (1,), (False,), embedding=8),
        text=TextConfig(encoder="tiny_bert", width=32, length=4),
        optim=OptimConfig(batch_size=8, warmup_steps=2, learning_rate=1e-2, ema_decay=0.9),
        run=RunConfig(num_steps=6, checkpoint_every=4, log_every=1),
        data=DataConfig(path="data"), sampling=SamplingConfig(steps=4),
    ),)
"""


# Run by the old code, which has other modules than this checkout.
DATA = """
from pathlib import Path
from imagen_jax.data import shapes, sources, transforms

records = [
    {"image": transforms.encode_png(each["image"][::8, ::8]), "caption": each["caption"]}
    for each in shapes.examples("train", "single", 8)
]
sources.write({"train": records}, Path("data"), name="data", description="Eight shapes.")
"""
BEST = """
from imagen_jax import config
from imagen_jax.training import best_sampling

options = config.SamplingConfig(sampler="unipc", steps=4, order=2)
best_sampling.save_best_sampling("run", {"base": options}, {"score": 0.5})
"""


def run(*command: str) -> None:
    environment = os.environ | {"PYTHONPATH": sys.argv[1], "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, *command], check=True, env=environment)


def main() -> None:
    scripts = Path(sys.argv[1]).resolve() / "scripts"
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        shutil.copytree(GOLDENS / "tiny_bert", "tiny_bert")
        Path("preset.py").write_text(PRESET)
        run("-c", DATA)
        shutil.copytree("data", "clean")  # training adds embeddings to the other
        run(str(scripts / "train.py"), "--preset", "preset.py", "--stage", "base", "--workdir", "run")
        run("-c", BEST)
        shutil.rmtree("run/base/checkpoints/6")
        run(
            str(scripts / "sample.py"), "--workdir", "run", "--best", "--prompts", "a red circle", "--seed", "3"
        )  # fmt: skip
        (picture,) = Path("run/samples").glob("*seed3*.png")
        shutil.copy(picture, "run/picture.png")
        rows = [json.loads(line) for line in Path("run/base/metrics.jsonl").read_text().splitlines()]
        Path("losses.json").write_text(json.dumps([row["loss"] for row in rows if row["step"] > 4]) + "\n")
        for path in Path("run/base").iterdir():
            if path.is_file() and path.name != "config.json":
                path.unlink()
        shutil.rmtree("run/samples")
        shutil.rmtree("data")
        Path("clean").rename("data")
        with tarfile.open(GOLDENS / "old_stage.tar.xz", "w:xz") as archive:
            for name in ("data", "run", "losses.json"):
                archive.add(name)


if __name__ == "__main__":
    main()
