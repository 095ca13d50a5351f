"""Two processes that train together: both stop, one is killed, fewer devices go on; no step is lost, none differs."""

import os
import random
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from imagen_jax import load_stage
from imagen_jax.data import transforms
from imagen_jax.prepare import shapes
from imagen_jax.prepare.records import write_records
from tests.conftest import QUICK

pytestmark = pytest.mark.slow

STEPS = 30
PRESET = """
import types
from jax._src import compiler
from imagen_jax.config import *

# JAX lets process 0 alone write to the compilation cache, and the programs of process 1 have keys of their own.
compiler.distributed = types.SimpleNamespace(global_state=types.SimpleNamespace(process_id=0, client=None))

def get_config():
    base = StageConfig(
        image_size=8, network=UNetConfig((8,), (1,), (False,), embedding=32, dropout=0.1),
        sampling=SamplingConfig(steps=2), text=TextConfig(encoder={encoder!r}, width=32, length=12),
        data=DataConfig(path={data!r}),
        optim=OptimConfig(batch_size=8, warmup_steps=2, learning_rate=1e-3, ema_decay=0.9),
        run=RunConfig(
            num_steps={steps}, checkpoint_every=5, keep_checkpoints=6, log_every=1, validate_every=15, sample_every=15
        ),
    )
    return (base,)
"""


@pytest.fixture(scope="module")
def soak(load_script):
    return load_script("soak")


@pytest.fixture(scope="module")
def setup(tmp_path_factory, process_encoder, soak):
    """(folder, arguments of train.py, workdir of an undisturbed run of two processes with two devices each)."""
    folder = tmp_path_factory.mktemp("processes")
    jax.devices()  # those of this process, before XLA_FLAGS are those of the processes that it starts
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_ENABLE_COMPILATION_CACHE", "true")
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "compiled"))
        patch.setenv("XLA_FLAGS", QUICK)
        records = [
            {"image": transforms.encode_png(e["image"]), "caption": e["caption"]}
            for e in shapes.examples("train", "single", 30)
        ]
        splits = {"train": records, "validation": records[:8]}
        write_records(splits, folder / "data", name="data", description="Thirty shapes.")
        preset = folder / "preset.py"
        preset.write_text(PRESET.format(encoder=str(process_encoder), data=str(folder / "data"), steps=STEPS))
        arguments = ["--preset", str(preset), "--stage", "base"]
        soak.train(arguments, folder / "whole", 2, 2)
        yield folder, arguments, folder / "whole"


def until_checkpoint(soak, arguments, workdir, step):
    """A run of two processes that has saved this step and goes on."""
    run = soak.Run([*arguments, "--workdir", str(workdir)], workdir.with_name(f"{workdir.name}-log"), 2, 2)
    while soak.newest(workdir, "base") < step and None in run.wait(0.02):
        pass
    return run


def test_stopped_killed_and_on_other_devices_nothing_is_lost(setup, soak):
    folder, arguments, whole = setup
    workdir = folder / "disturbed"
    # A notice to one process stops both after the same step.
    run = until_checkpoint(soak, arguments, workdir, 5)
    run.processes[1].send_signal(signal.SIGTERM)
    assert run.wait(60) == [143, 143]
    stopped = soak.newest(workdir, "base")
    assert 5 < stopped < STEPS - 5
    assert f"stopped at step {stopped} of {STEPS}" in (folder / "disturbed-log-0.log").read_text()
    # The run that continues is the undisturbed one, to the bit. A killed process of it ends the other.
    saved = (stopped // 5 + 1) * 5
    run = until_checkpoint(soak, arguments, workdir, saved)
    killed = random.randrange(2)
    run.processes[killed].kill()
    statuses = run.wait(60)
    run.end()
    assert statuses[killed] == -signal.SIGKILL
    assert statuses[1 - killed] in (134, -signal.SIGABRT), statuses  # a shell calls both 134
    one, other = (jax.tree.leaves(load_stage(each / "base", saved).params) for each in (whole, workdir))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)
    # Fewer devices go on, and more again, with the same global batch.
    saved = soak.newest(workdir, "base")
    soak.train([*arguments, "--run.num-steps", str(saved + 3)], workdir, 1, 1)
    soak.train(arguments, workdir, 1, 4)
    one, other = soak.losses(whole, "base"), soak.losses(workdir, "base")
    assert sorted(one) == sorted(other) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(other.values()), list(one.values()), atol=1e-5)
    looks = [
        [row["validation_loss"] for row in soak.rows(each, "base") if "validation_loss" in row]
        for each in (whole, workdir)
    ]
    np.testing.assert_allclose(*looks, atol=1e-5)
    assert len(looks[0]) == 2 and len(list((workdir / "base/samples").iterdir())) == 2


ELSEWHERE = """
import sys
from imagen_jax import processes
from imagen_jax import sharding
processes.initialize()
import jax
from imagen_jax.config import DataConfig, StageConfig, TextConfig
from imagen_jax.training.loop import train

for seed, workdir in ((0, jax.process_index()), (jax.process_index(), "same")):
    config = StageConfig(text=TextConfig(encoder="none", width=8), data=DataConfig(path="none"), seed=seed)
    try:
        train(config, f"{sys.argv[1]}/{workdir}")
    except ValueError as error:
        print(error, flush=True)
"""


def two_processes(code, *arguments):
    """What two processes of one run print."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    common = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "XLA_FLAGS": QUICK}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True,
            env=common | {"JAX_PROCESS_ID": str(i)},
        )
        for i in range(2)
    ]  # fmt: skip
    return [process.communicate(timeout=600)[0] for process in started]


def test_processes_of_another_workdir_or_seed_are_told_before_anything_is_written(tmp_path):
    for out in two_processes(ELSEWHERE, str(tmp_path)):
        for option in ("--workdir", "seed"):
            assert f"{option} must be the same in every process; got a difference from process 0 in process 1" in out
    assert not list(tmp_path.iterdir())


UNREADABLE = """
import sys
from imagen_jax import processes
from imagen_jax import sharding
processes.initialize()
import jax, jax.numpy as jnp
from imagen_jax.config import StageConfig
from imagen_jax.structs import TrainState
from imagen_jax.stage_dir import checkpoint

whole = sharding.replicated(sharding.make_mesh())
new = jax.jit(
    lambda step: TrainState(step, {"a": 1.0 * step}, {"a": 2.0 * step}, {"m": jnp.zeros(4)}), out_shardings=whole
)
with checkpoint.Checkpoints(sys.argv[1], StageConfig()) as checkpoints:
    for step in (1, 2):
        checkpoints.save(new(jnp.int32(step)), {"next_index": step})
if jax.process_index() == 1:  # a disk that only this process reads wrongly
    read = checkpoint._read
    def broken(folder, restore):
        return read(folder, restore if folder.name != "2" else lambda: 1 / 0)
    checkpoint._read = broken
shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), new(jnp.int32(0)))
with checkpoint.Checkpoints(sys.argv[1], StageConfig()) as checkpoints:
    state, position = checkpoints.restore(shapes)
    print("restored", int(state.step), float(state.ema_params["a"]), position, checkpoints.latest_step)
"""


def test_a_checkpoint_that_one_process_cannot_read_is_skipped_by_all(tmp_path):
    for out in two_processes(UNREADABLE, str(tmp_path)):
        assert "restored 1 2.0 {'next_index': 1} 1" in out
    assert [path.name for path in (tmp_path / "damaged").iterdir()] == ["2"]
