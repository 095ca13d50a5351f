"""A stage of DeepFloyd IF in diffusers' layout, read as a stage of this package.

    PIPELINE/model_index.json
    PIPELINE/unet/config.json
    PIPELINE/unet/diffusion_pytorch_model[.VARIANT].safetensors, or its shards and their index
    PIPELINE/scheduler/scheduler_config.json
    PIPELINE/text_encoder, PIPELINE/tokenizer    of the language model, which `TextEncoder` reads
"""

import dataclasses
import functools
import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax import checks, stage
from imagen_jax.checks import Verbatim, error, require
from imagen_jax.config import StageConfig
from imagen_jax.config.deepfloyd import NUM_STEPS, released_cap, stage_config
from imagen_jax.config.validation import validate
from imagen_jax.stage_dir import unet_config, unet_weights
from imagen_jax.stage_dir.unet_config import UNetDescription
from imagen_jax.storage import locations
from imagen_jax.text import model_files

INDEX = model_files.PIPELINE_INDEX
_PIPELINES = tuple(
    f"IF{task}{scale}Pipeline" for task in ("", "Img2Img", "Inpainting") for scale in ("", "SuperResolution")
)
SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": NUM_STEPS,
    "prediction_type": "epsilon",
    "trained_betas": None,
    "variance_type": "learned_range",
}


def is_pipeline(directory: Path) -> bool:
    """Whether a directory is that of a pipeline of diffusers, of any kind, or of a network in its layout."""
    if locations.is_remote(directory):
        return False
    if (directory / INDEX).is_file():
        return True
    for file in (directory / "unet" / "config.json", directory / "config.json"):
        try:
            if file.is_file() and "_class_name" in model_files.read_json(file):
                return True
        except (ValueError, OSError):  # reading it as a stage of ours says what is wrong
            pass
    return False


def load(
    directory: str | Path, *, variant: str | None = None, dtype: str = "float32", mesh: Mesh | None = None
) -> stage.Stage:
    """Load a stage of DeepFloyd IF from diffusers' layout, tensor by tensor.

    Args:
      directory: of a pipeline, or its unet/.
      variant: of the weight files, such as "fp16"; None: those without one, or the only one there is.
      dtype: of the parameters, "float32" or "bfloat16".
      mesh: parameters are born sharded over its "fsdp" axis; None: on the default device.

    Raises:
      ValueError: the directory holds another pipeline, configuration and weights do not fit each other, or a file
        cannot be read.
    """
    checks.choice("dtype", dtype, ("float32", "bfloat16"))
    if variant is not None:
        checks.text("variant", variant)
    unet, config = _read(directory)
    paths = unet_weights.find_files(unet, variant)
    params = unet_weights.read_params(paths, param_shapes(config), jnp.dtype(dtype), mesh)
    return stage.Stage(params=params, config=config)


def read_config(directory: str | Path) -> StageConfig:
    """Return the configuration of the stage that `load` would load, without its parameters."""
    return _read(directory)[1]


def load_recorded(
    directory: Path, sha256: str | None, *, dtype: str = "float32", mesh: Mesh | None = None
) -> tuple[Any, str]:
    """Return the parameters of `load`, and the `weights_hash` of their files.

    Args:
      directory, dtype, mesh: as of `load`.
      sha256: the hash that the files must have; None: any.

    Raises:
      ValueError: they have another, or as `load`.
    """
    found, fix = weights_hash(directory), "put the files of then back"
    require(sha256 in (None, found), f"weights in {directory}", f"have the sha256 {sha256}", found, fix)
    return load(directory, dtype=dtype, mesh=mesh).params, found


def weights_hash(directory: str | Path) -> str:
    """Return a SHA-256 of the weight files that `load` reads, in hex digits."""
    paths = unet_weights.find_files(_read(directory)[0])
    return _hash(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths))


@functools.lru_cache(maxsize=8)  # a start of training asks several times, and the files may have many gigabytes
def _hash(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Return the hash of files, each with its size and time of change."""
    hashes = [model_files.named_hash(path) for path, _, _ in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


@functools.lru_cache(maxsize=8)
def param_shapes(config: StageConfig) -> Any:
    """Return the tree of shapes of a stage's parameters."""
    return jax.eval_shape(lambda: stage.init(config, jax.random.key(0)))


def _read(directory: str | Path) -> tuple[Path, StageConfig]:
    """Return the directory of the U-Net, and the configuration of the stage."""
    place = locations.local(directory, "directory")
    got = Verbatim(f"{place}, which is no directory")
    require(place.is_dir(), "directory", "be that of a pipeline of DeepFloyd IF or its unet/", got)
    if (place / INDEX).is_file():
        _check_pipeline(place / INDEX)
    unet = place / "unet" if (place / "unet").is_dir() else place
    file = unet / "config.json"
    fix = "give a directory in diffusers' layout"
    require(file.is_file(), "directory", "hold unet/config.json or config.json", Verbatim(f"{place} without"), fix)
    data = model_files.read_json(file)
    fix = "load stages of ours by imagen_jax.load_stage"
    require("_class_name" in data, str(file), "be of diffusers, with _class_name", Verbatim("none"), fix)
    try:
        described = unet_config.parse(data)
    except ValueError as wrong:
        raise checks.within(file, wrong) from wrong
    return unet, _stage_config(described, unet.parent)


def _check_pipeline(file: Path) -> None:
    name = model_files.read_json(file).get("_class_name")
    rule, fix = "be a pipeline of DeepFloyd IF", "give the directory of DeepFloyd/IF-I-* or DeepFloyd/IF-II-*"
    if name == "StableDiffusionUpscalePipeline":
        got = Verbatim(f"{name}, a stage III latent upscaler, which is not a pixel stage")
        raise error(str(file.parent), rule, got, "as third stage, give any super-resolution stage of ours")
    require(name in _PIPELINES, str(file.parent), rule, name, fix)


def _stage_config(described: UNetDescription, pipeline: Path) -> StageConfig:
    is_sr = described.is_super_resolution
    percentile, cap = _thresholding(pipeline / "scheduler" / "scheduler_config.json", released_cap(is_sr))
    config = stage_config(
        described.network,
        described.image_size,
        is_super_resolution=is_sr,
        image_channels=described.image_channels,
        text_width=described.text_width,
        percentile=percentile,
        cap=cap,
    )
    if (pipeline / "text_encoder").is_dir():
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, encoder=str(pipeline.resolve())))
    return validate(config)


def _thresholding(scheduler: Path, cap: float) -> tuple[float, float]:
    """Return ratio and cap of dynamic thresholding in a scheduler_config.json, if there is one."""
    if not scheduler.is_file():
        return 0.95, cap
    data = model_files.read_json(scheduler)
    name = partial("{}: {}".format, scheduler)
    for key, value in SCHEDULER.items():
        found = data.get(key, value)
        require(found == value, name(key), f"be {value!r}", found, "give a scheduler of DeepFloyd IF")
    ratio, cap = data.get("dynamic_thresholding_ratio", 0.95), data.get("sample_max_value", cap)
    return (
        checks.number(name("dynamic_thresholding_ratio"), ratio, "(0, 1]"),
        checks.number(name("sample_max_value"), cap, "[1, 1000000]"),
    )
