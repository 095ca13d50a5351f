"""A stage of DeepFloyd IF in diffusers' layout, read as a stage of this package.

    PIPELINE/model_index.json
    PIPELINE/unet/config.json
    PIPELINE/unet/diffusion_pytorch_model[.VARIANT].safetensors, or its shards and their index
    PIPELINE/scheduler, PIPELINE/image_noising_scheduler    see `if_scheduler`
    PIPELINE/text_encoder, PIPELINE/tokenizer    of the language model, which `TextEncoder` reads
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax import checks, stage
from imagen_jax.checks import Verbatim, error, require
from imagen_jax.config import StageConfig
from imagen_jax.config.deepfloyd import stage_config
from imagen_jax.config.validation import validate
from imagen_jax.stage_dir import if_scheduler, unet_config, unet_weights
from imagen_jax.stage_dir.unet_config import UNetDescription
from imagen_jax.storage import locations
from imagen_jax.text import model_files

INDEX = model_files.PIPELINE_INDEX
_PIPELINES = tuple(
    f"IF{task}{scale}Pipeline" for task in ("", "Img2Img", "Inpainting") for scale in ("", "SuperResolution")
)


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
    """Load a stage from a directory on this machine; arguments and errors as of `interop.deepfloyd.load_stage`."""
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


def index(config: StageConfig) -> dict[str, Any]:
    """Return the model_index.json of a pipeline without a language model for a stage, as diffusers reads it."""
    is_sr = config.is_super_resolution
    parts = {"unet": "UNet2DConditionModel", "scheduler": "DDPMScheduler"}
    parts |= {"image_noising_scheduler": "DDPMScheduler"} if is_sr else {}
    left_out = ("text_encoder", "tokenizer", "feature_extractor", "safety_checker", "watermarker")
    return {
        "_class_name": "IFSuperResolutionPipeline" if is_sr else "IFPipeline",
        "requires_safety_checker": False,
        **{name: ["diffusers", kind] for name, kind in parts.items()},
        **{name: [None, None] for name in left_out},
    }


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
    kind = data.get("model_type")
    got = Verbatim("none" if kind is None else f"a language model of type {checks.shown(kind)}")
    fix = "load stages of ours by imagen_jax.load_stage" if kind is None else "give the pipeline or its unet/"
    require("_class_name" in data, str(file), "be of diffusers, with _class_name", got, fix)
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
    config = stage_config(
        described.network,
        described.image_size,
        is_super_resolution=described.is_super_resolution,
        image_channels=described.image_channels,
        text_width=described.text_width,
        sampling=if_scheduler.read(pipeline),
    )
    if (pipeline / "text_encoder").is_dir():
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, encoder=str(pipeline.resolve())))
    return validate(config)
