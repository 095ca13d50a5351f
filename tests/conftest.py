"""Eight simulated devices, and no silent broadcasting of [B] against [B, H, W, C]."""

import os
from importlib.metadata import version

# Without XLA's newer emitters of kernels programs compile in a quarter to half less time, and unsplit ones in a quarter
# less again: they are small. An unknown flag would end the process.
QUICK = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if version("jaxlib").startswith("0.10.")
    else ""
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # tests compile much and compute little
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # scripts turn it on for the whole process
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK} --xla_force_host_platform_device_count=8"

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")

import dataclasses
import gc
import importlib
import importlib.util
import json
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from imagen_jax import Stage, compilation, config, resize, sample_cascade, sharding, signals, stage
from imagen_jax.cli.commands import COMMANDS
from imagen_jax.config.validation import validate_cascade
from imagen_jax.data import transforms
from imagen_jax.diffusion import guidance, samplers, thresholds
from imagen_jax.prepare import shapes
from imagen_jax.prepare.records import write_records
from imagen_jax.structs import TextCond
from tests.methods import Eager, Flat, Tight

ROOT = Path(__file__).parents[1]
GOLDENS = ROOT / "tests/goldens"
TINY_BERT = GOLDENS / "tiny_bert"  # a language model of random parameters, and its tokenizer
WIDTH = 12


def random_array(rng: np.random.Generator, shape: tuple[int, ...]) -> jax.Array:
    """About the size of trained parameters, and nothing at zero."""
    fan_in = max(1, int(np.prod(shape[:-1])))
    return jax.numpy.asarray(rng.normal(0, 0.5 / fan_in**0.5 if len(shape) > 1 else 0.5, shape), "float32")


def write_shapes(directory: Path, part: str = "single", **numbers: int) -> Path:
    """Write a data set of so many pictures of shapes in each split, such as `train=30`; return its directory."""
    records = {
        split: [
            {"image": transforms.encode_png(e["image"]), "caption": e["caption"], "claims": json.dumps(e["claims"])}
            for e in shapes.examples(split, part, num)
        ]
        for split, num in numbers.items()
    }
    write_records(records, directory, name="data", description="Shapes.")
    return directory


class Ran(NamedTuple):
    """What a script has left: its exit status, and what it printed."""

    status: int
    out: str
    err: str


@pytest.fixture
def run_script(monkeypatch, capsys):
    """run_script(name, *arguments) -> Ran: scripts/name, as a person runs it, in this process."""

    def run(name: str, *arguments: object) -> Ran:
        path = str(ROOT / "scripts" / name)
        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(sys, "argv", [path, *map(str, arguments)])
            runpy.run_path(path, run_name="__main__")
        return Ran(stop.value.code or 0, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def compiled_programs(tmp_path_factory) -> dict[str, str]:
    """Environment of a process that tests start: what one of them has compiled, the next ones need not."""
    directory = tmp_path_factory.mktemp("compiled")
    return {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_COMPILATION_CACHE_DIR": str(directory)}


@pytest.fixture(scope="module")
def compiled_once(compiled_programs):
    """The tests of a module that asks for it share compiled programs, also with the processes that they start."""

    def switch(is_on: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", is_on)
        compilation_cache.reset_cache()  # JAX looks at the option once

    compilation.use_compilation_cache(compiled_programs["JAX_COMPILATION_CACHE_DIR"])
    switch(True)
    yield
    switch(False)


def _take_one_device(patch: pytest.MonkeyPatch) -> None:
    make_mesh = sharding.make_mesh
    alone = lambda fsdp=1, devices=None, *, height=1: make_mesh(fsdp, jax.devices()[:1], height=height)
    patch.setattr(sharding, "make_mesh", alone)


@pytest.fixture(scope="module")
def one_device(compiled_once):
    """Training in this process takes one device, as in processes that tests start; for eight it compiles longer."""
    with pytest.MonkeyPatch.context() as patch:
        _take_one_device(patch)
        yield


@pytest.fixture
def one_device_here(compiled_once, monkeypatch):
    """The same for one test of a module."""
    _take_one_device(monkeypatch)


def pytest_collection_modifyitems(items):
    """Files with slow tests come first, so that no process is left alone with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


_MAPS = Path("/proc/self/maps")
_tests_run = 0


@pytest.fixture(autouse=True)
def few_programs():
    """Lets go of compiled programs before they use up the memory maps of the process, of which Linux allows 65530."""
    yield
    global _tests_run
    _tests_run += 1
    if _tests_run % 50 == 0 and (not _MAPS.exists() or _MAPS.read_bytes().count(b"\n") > 15_000):
        jax.clear_caches()
        gc.collect()


@pytest.fixture(autouse=True)
def own_signals():
    """Scripts that a test runs in this process do not keep its signals."""
    yield
    signals.uninstall()


@pytest.fixture(scope="session")
def process_encoder(tmp_path_factory) -> Path:
    """TINY_BERT for processes of their own: its tokenizer is one file, which is read without importing transformers."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("encoder") / "tiny_bert"
    shutil.copytree(TINY_BERT, folder)
    AutoTokenizer.from_pretrained(folder)._tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def load_script():
    """load(name) -> the module of the command that scripts/name.py runs, or benchmarks/name.py as a module."""

    def load(name: str) -> ModuleType:
        for command, (script, _) in COMMANDS.items():
            if script == f"{name}.py":
                return importlib.import_module(f"imagen_jax.cli.{command}")
        file = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def tiny_configs() -> tuple[config.StageConfig, config.StageConfig]:
    """A two-stage cascade, 8x8 -> 16x16, that compiles in seconds."""
    text = config.TextConfig(encoder="test", width=WIDTH, length=5)
    optim = config.OptimConfig(batch_size=8, warmup_steps=2, learning_rate=1e-2, ema_decay=0.9)
    base = config.StageConfig(
        image_size=8,
        network=config.UNetConfig((8,), (1,), (True,), embedding=32, head_dim=8),
        sampling=config.SamplingConfig(steps=4, guidance_scale=3.0),
        text=text,
        optim=optim,
    )
    super_resolution = dataclasses.replace(
        base,
        name="sr16",
        image_size=16,
        low_res_size=8,
        network=config.EfficientUNetConfig(8, (8,), (1,), (False,), (False,), embedding=32),
    )
    return validate_cascade((base, super_resolution))


@pytest.fixture(scope="session")
def tiny_stages(tiny_configs) -> tuple[Stage, Stage]:
    """Stages with random parameters, no layer left at zero."""

    def random(settings: config.StageConfig) -> Stage:
        shapes = jax.eval_shape(lambda: stage.init(settings, jax.random.key(0)))
        rng = np.random.default_rng(0)
        return Stage(params=jax.tree.map(lambda leaf: random_array(rng, leaf.shape), shapes), config=settings)

    return tuple(random(settings) for settings in tiny_configs)


@pytest.fixture(scope="session")
def tiny_text() -> TextCond:
    """Seven encoded captions of different lengths."""
    rng = np.random.default_rng(0)
    mask = np.arange(5)[None] < np.array([5, 3, 4, 2, 5, 1, 3])[:, None]
    return TextCond(jax.numpy.asarray(rng.normal(size=(7, 5, WIDTH)), "float32"), jax.numpy.asarray(mask))


@pytest.fixture(scope="session")
def make_request(tiny_text):
    """make_request(num) -> (text, keys) of as many images; image i does not depend on the number."""
    return lambda num: (jax.tree.map(lambda leaf: leaf[np.arange(num) % 7], tiny_text), stage.image_keys(3, num))


@pytest.fixture(scope="session")
def sixteen_images(tiny_stages, make_request) -> np.ndarray:
    """The images of `make_request(16)`, sampled on one device."""
    return np.asarray(sample_cascade(tiny_stages, *make_request(16)))


@pytest.fixture(scope="session")
def tiny_batch(tiny_text) -> dict[str, np.ndarray]:
    """One training batch of eight, as the data pipeline yields it."""
    pictures = [transforms.to_unit(shapes.example(i)["image"]) for i in range(8)]
    rows = np.arange(8) % 7
    return {
        "x": resize.area(np.stack(pictures), 16),
        "text": np.asarray(tiny_text.embeddings)[rows],
        "text_mask": np.asarray(tiny_text.mask)[rows],
    }


@pytest.fixture(scope="session")
def bucket_server():
    """Address of an S3 server on this machine's loopback; one for all tests, since file systems cache it."""
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="module")
def bucket(bucket_server):
    """s3://bucket, which is empty."""
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": bucket_server,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }.items():
            patch.setenv(name, value)
        made = boto3.resource("s3").create_bucket(Bucket="bucket")
        made.objects.all().delete()
        yield "s3://bucket"


@pytest.fixture
def outside(monkeypatch):
    """The three methods, registered as "mine" for the time of a test."""
    methods = ((samplers.SAMPLERS, Eager), (guidance.RULES, Flat), (thresholds.THRESHOLDS, Tight))
    for registry, cls in methods:
        monkeypatch.setattr(registry, "_entries", dict(registry))
        registry.register("mine")(cls)
