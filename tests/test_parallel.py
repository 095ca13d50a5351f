"""Sampling over devices: the same images, whatever their number and however parameters and rows are split."""

import dataclasses
import os
import socket
import subprocess
import sys
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import image_keys, processes, resize, sample_cascade, sample_stage, sharding
from imagen_jax.generate import compile_cascade, pmapped
from imagen_jax.sampling.cascade import run_cascade

pytestmark = pytest.mark.slow

SEED = 3


def batch_of(text, num):
    rows = np.arange(num) % 7
    return jax.tree.map(itemgetter(rows), text), image_keys(SEED, num)


@pytest.fixture(scope="module")
def reference(tiny_stages, tiny_text):
    """Sixteen images on one device."""
    return np.asarray(sample_cascade(tiny_stages, *batch_of(tiny_text, 16)))


@pytest.mark.parametrize("num", [1, 7, 16])
def test_pmapped_is_the_same_to_1e_5(tiny_stages, tiny_text, reference, num):
    out = pmapped.pmap_sample_cascade(tiny_stages, *batch_of(tiny_text, num))
    assert out.shape == (num, 16, 16, 3)
    np.testing.assert_allclose(out, reference[:num], atol=1e-5)


def test_pmapped_takes_every_input(tiny_stages, tiny_text):
    text, keys = batch_of(tiny_text, 7)
    picture = jnp.asarray(resize.bilinear(np.random.default_rng(0).uniform(-1, 1, (7, 4, 4, 3)), 16))
    mask = jnp.zeros((7, 16, 16)).at[:, :, 4:11].set(1)
    options = {
        "image": picture, "mask": mask, "negative": jax.tree.map(lambda leaf: leaf[:1], text), "sampler": "unipc",
        "steps": (3, 2), "guidance_scale": (2.0, 1.5), "return_all": True, "resample": 2,
    }  # fmt: skip
    one = sample_cascade(tiny_stages, text, keys, **options)
    eight = pmapped.pmap_sample_cascade(tiny_stages, text, keys, **options)
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_pmapped_programs_are_kept(tiny_stages, tiny_text):
    run = lambda: pmapped.pmap_sample_cascade(tiny_stages, *batch_of(tiny_text, 8), steps=2)
    run()
    before = pmapped._pmapped.cache_info()
    run()
    assert pmapped._pmapped.cache_info().hits == before.hits + 1


@pytest.mark.parametrize("num", [1, 7, 16])
@pytest.mark.parametrize("fsdp", [1, 4])
def test_on_a_mesh_it_is_the_same_to_1e_5(tiny_stages, tiny_text, reference, num, fsdp, monkeypatch):
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 256)
    mesh = sharding.make_mesh(fsdp)
    stages = sharding.shard_params(tiny_stages, mesh)
    inputs = sharding.pad_batch(batch_of(tiny_text, num), 16, mesh)
    out = sample_cascade(stages, *inputs)
    assert len(out.sharding.device_set) == 8 and out.addressable_shards[0].data.shape[0] == 2
    np.testing.assert_allclose(np.asarray(out)[:num], reference[:num], atol=1e-5)
    biggest = max(jax.tree.leaves(stages), key=lambda leaf: leaf.size)
    assert biggest.addressable_shards[0].data.size * fsdp == biggest.size


def test_rows_of_an_image_can_be_split_over_devices(tiny_stages, tiny_text, reference):
    mesh = sharding.make_mesh(height=4)
    with jax.set_mesh(mesh):
        stages = sharding.replicate(tiny_stages, mesh)
        inputs = sharding.pad_batch(batch_of(tiny_text, 2), 2, mesh)
        run = jax.jit(sample_cascade)
        out = run(stages, *inputs)
        text = run.lower(stages, *inputs).compile().as_text()
    np.testing.assert_allclose(out, reference[:2], atol=1e-5)
    assert "collective-permute" in text  # convolutions exchange the rows at the borders
    assert out.addressable_shards[0].data.shape == (1, 4, 16, 3)


def test_rows_that_cannot_be_split(tiny_stages, tiny_text):
    mesh = sharding.make_mesh(height=8)
    odd = dataclasses.replace(tiny_stages[0].config, image_size=12)
    stage = type(tiny_stages[0])(tiny_stages[0].params, odd)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="height must divide .* 12; got 8"):
        sample_cascade((stage,), *batch_of(tiny_text, 1))


@pytest.mark.parametrize("ways", [{"fsdp": 3}, {"height": 5}, {"fsdp": 4, "height": 4}])
def test_a_mesh_that_does_not_fit(ways):
    with pytest.raises(ValueError, match="must divide the number of devices 8"):
        sharding.make_mesh(**ways)


# --- many processes -------------------------------------------------------------------------------

PROCESS = """
import sys
from imagen_jax import compilation
from imagen_jax.generate import pmapped
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
processes.require_same({"the seed": "0", "the configuration": sys.argv[1]})
print("the same")
"""


def run_two(texts):
    """What two processes print that hold these texts."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=environment | {"JAX_PROCESS_ID": str(i)},
        )
        for i, text in enumerate(texts)
    ]  # fmt: skip
    return ["".join(process.communicate(timeout=120)) for process in started]


def test_processes_agree_or_stop():
    assert all("the same" in out for out in run_two(["a", "a"]))
    rule = "the configuration must be the same in every process; got a difference from process 0 in process 1 of 2"
    assert all(rule in out and "the same\n" not in out for out in run_two(["a", "b"]))


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


def test_shares_of_a_state():
    mesh = sharding.make_mesh(4)
    kernel = jax.ShapeDtypeStruct((512, 1024), np.float32)
    bias = jax.ShapeDtypeStruct((1024,), np.float32)
    tree = {"kernel": kernel, "bias": bias}
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        sharding.state_sharding(tree, mesh),
    )
    total, per_device, replicated = sharding.byte_counts(placed)
    assert total == 4 * (512 * 1024 + 1024) and per_device == 4 * (512 * 1024 // 4 + 1024)
    assert replicated == pytest.approx(4096 / total)


# --- one program ----------------------------------------------------------------------------------


def test_compiled_ahead_of_time(tiny_stages, tiny_text, reference):
    sample, program = compile_cascade(tiny_stages, 16)
    for num in (16, 7):
        np.testing.assert_allclose(sample(tiny_stages, *batch_of(tiny_text, num)), reference[:num], atol=1e-5)
    assert program.cost_analysis()["flops"] > 0
    half = lambda text: text.replace(embeddings=text.embeddings.astype(jnp.bfloat16))
    text, keys = batch_of(tiny_text, 3)
    assert sample(tiny_stages, half(text), keys).shape == (3, 16, 16, 3)
    with pytest.raises(ValueError, match="keys must have 1 to 16 rows; got 17"):
        sample(tiny_stages, *batch_of(tiny_text, 17))
    with pytest.raises(ValueError, match=r"text must have embeddings \[2, 5, 12\], .*; got \(3, 5, 12\)"):
        sample(tiny_stages, text, keys[:2])
    with pytest.raises(ValueError, match="multiple of the 8 devices; got 12"):
        compile_cascade(tiny_stages, 12)


def test_one_program_needs_no_more_memory_than_its_largest_stage(tiny_stages, tiny_text):
    """Buffers of one stage are reused by the next."""
    text, keys = batch_of(tiny_text, 8)
    small = jnp.zeros((8, 8, 8, 3))
    memory = lambda f, *a: jax.jit(f).lower(*a).compile().memory_analysis().temp_size_in_bytes
    both = memory(lambda s: run_cascade(s, text, keys), tiny_stages)
    base = memory(lambda s: sample_stage(s, text, keys), tiny_stages[0])
    last = memory(lambda s: sample_stage(s, text, keys, low_res=small), tiny_stages[1])
    assert both < max(base, last) + 0.5 * min(base, last)


PROGRAM = """
import jax, sys
from imagen_jax import stage
from imagen_jax import compilation
from imagen_jax.generate import pmapped
from imagen_jax import processes
from imagen_jax import sharding
from imagen_jax.sampling.cascade import run_cascade
from imagen_jax.generate import compile_cascade
from imagen_jax.stage import Stage
from imagen_jax.config import *
events = []
jax.monitoring.register_event_listener(lambda name, **kw: events.append(name))
compilation.use_compilation_cache(sys.argv[1])
config = StageConfig(
    image_size=8, network=UNetConfig((8,), (1,), (False,), embedding=32, head_dim=8),
    sampling=SamplingConfig(sampler="unipc", steps=4), text=TextConfig(width=12, length=5),
)
params = jax.eval_shape(lambda: stage.init(config, jax.random.key(0)))
compile_cascade((Stage(params, config),), 2)
print(sum(name.endswith("cache_misses") for name in events), sum(name.endswith("cache_hits") for name in events))
"""


def test_a_second_process_compiles_nothing(tmp_path):
    tests_own = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_ENABLE_COMPILATION_CACHE")
    environment = {k: v for k, v in os.environ.items() if k not in tests_own}

    def run():
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        return tuple(map(int, out.split()))

    (misses, _), (misses_again, hits) = run(), run()
    assert misses > 0 and misses_again == 0 and hits >= misses
