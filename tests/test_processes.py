"""Processes of a run find each other through the environment, exchange values, and stop together."""

import os
import socket
import subprocess
import sys

import pytest

from imagen_jax import processes

PROCESS = """
import sys
from imagen_jax import processes
from imagen_jax import sharding
processes.initialize(timeout_s=60)
import jax
assert jax.process_count() == 2
processes.require_same({"the configuration": "one"})

# A mesh that does not follow the order of the processes, as on TPU slices.
import numpy as np
order = [jax.devices()[i] for i in (0, 2, 1, 3)]
meshes = [sharding.make_mesh(devices=order, **ways) for ways in ({}, {"fsdp": 2}, {"height": 2})]
for mesh in meshes:
    whole = np.arange(8 * 3).reshape(8, 3)
    rows = sharding.local_batch_indices(mesh, 8)
    placed = sharding.shard_batch(whole[rows], mesh, 8)
    found = jax.device_get(jax.jit(lambda a: a, out_shardings=sharding.replicated(mesh))(placed))
    np.testing.assert_array_equal(found, whole)
assert list(sharding.local_batch_indices(meshes[0], 8)) == [[0, 1, 4, 5], [2, 3, 6, 7]][jax.process_index()]
assert [bool(sharding.any_process(jax.process_index() == 1 and flag, mesh)) for flag in (True, False)] == [True, False]

# All processes save a stage together.
from imagen_jax import Stage, config, load_stage, save_stage, stage
settings = config.StageConfig(
    image_size=8, network=config.UNetConfig((8,), (1,), (False,), embedding=8),
    text=config.TextConfig(encoder="test", width=8, length=4),
)
shapes = jax.eval_shape(lambda: stage.init(settings, jax.random.key(0)))
params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, leaf.dtype), shapes)
save_stage(Stage(params, settings), sys.argv[2])
assert all((np.asarray(leaf) == 0.5).all() for leaf in jax.tree.leaves(load_stage(sys.argv[2]).params))

processes.require_same({"the seed": "0", "the configuration": sys.argv[1]})
print("the same")
"""


def run_two(texts, directory):
    """What two processes print that hold these texts."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, text, str(directory)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment | {"JAX_PROCESS_ID": str(i)},
        )
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return ["".join(process.communicate(timeout=120)) for process in started]


@pytest.mark.slow
def test_processes_agree_or_stop(tmp_path):
    assert all("the same" in out for out in run_two(["a", "a"], tmp_path / "same"))
    rule = "the configuration must be the same in every process; got a difference from process 0 in process 1 of 2"
    assert all(rule in out and "the same\n" not in out for out in run_two(["a", "b"], tmp_path / "other"))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "must be set together"),
        (
            {"JAX_COORDINATOR_ADDRESS": "host:abc", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            "must be set together",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "host", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            "must be set together",
        ),
        (
            {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "must be below",
        ),
        ({"IMAGEN_JAX_JOIN_TIMEOUT": "a minute"}, "must be a number of seconds"),
    ],
)
def test_an_incomplete_environment_is_refused(monkeypatch, variables, message):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        processes.initialize()
