"""DeepFloyd IF: its published stages in diffusers' layout, loaded, called and written.

    PIPELINE/model_index.json
    PIPELINE/unet/config.json
    PIPELINE/unet/diffusion_pytorch_model[.VARIANT].safetensors, or its shards and their index
    PIPELINE/scheduler/scheduler_config.json

The weights are not part of this package. They are under the DeepFloyd IF licence, which has to be accepted at
https://huggingface.co/DeepFloyd before they can be downloaded.
"""

import functools
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax import arrays, checks, stage
from imagen_jax.checks import Verbatim, error, require
from imagen_jax.config import ProcessConfig, SamplingConfig, StageConfig, TextConfig
from imagen_jax.config.validation import validate
from imagen_jax.diffusion import schedules
from imagen_jax.stage_dir import unet_config, unet_weights
from imagen_jax.stage_dir.unet_config import UNetDescription
from imagen_jax.models.if_unet import IFUNetConfig
from imagen_jax.storage import directories, files, locations
from imagen_jax.structs import Cond, TextCond
from imagen_jax.text import model_files

NUM_STEPS = 1000
NOISE_LEVEL = 250  # of the low-res image when stage II is sampled
TEXT_LENGTH = 77
_ENCODER = "google/t5-v1_1-xxl"  # the same encoder as IF's
_PIPELINES = tuple(
    f"IF{task}{scale}Pipeline" for task in ("", "Img2Img", "Inpainting") for scale in ("", "SuperResolution")
)
_SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": NUM_STEPS,
    "prediction_type": "epsilon",
    "trained_betas": None,
    "variance_type": "learned_range",
}


def load_stage(
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
    """Return the configuration of the stage that `load_stage` would load, without its parameters."""
    return _read(directory)[1]


@functools.lru_cache(maxsize=8)
def param_shapes(config: StageConfig) -> Any:
    """Return the tree of shapes of a stage's parameters."""
    return jax.eval_shape(lambda: stage.init(config, jax.random.key(0)))


def export(exported: stage.Stage, directory: str | Path, *, dtype: str = "float32", variant: str = "") -> None:
    """Write a stage of DeepFloyd IF to diffusers' layout: DIRECTORY/unet and DIRECTORY/scheduler.

    diffusers reads it with `UNet2DConditionModel.from_pretrained(DIRECTORY, subfolder="unet")`. What `load_stage`
    reads is written to the bit, if `dtype` is that of its weight files or float32.

    Args:
      exported: a stage whose network is an `IFUNet`, with parameters that this process can read whole.
      directory: a new one.
      dtype: of the weights: "float32", "float16" or "bfloat16".
      variant: in the name of the weight file, such as "fp16".

    Raises:
      ValueError: the stage has another network, or the directory holds something or has too little space.
      OSError: writing failed; nothing is left.
    """
    checks.instance("stage", exported, stage.Stage, "a Stage, as from load_stage")
    checks.choice("dtype", dtype, unet_weights.DTYPES)
    is_plain = isinstance(variant, str) and (not variant or variant.replace("-", "_").isidentifier())
    require(is_plain, "variant", "be empty or a name such as fp16", variant)
    config = exported.config
    is_right = isinstance(config.network, IFUNetConfig)
    require(is_right, "stage", "have the network if_unet, which alone diffusers has", config.network)
    place = locations.local(directory, "directory")
    directories.check_new(place, "directory", needed=unet_weights.num_bytes(exported.params, dtype))
    described = UNetDescription(
        config.network, config.is_super_resolution, config.image_channels, config.image_size, config.text.width
    )
    with directories.writing_new(place) as new:
        for folder in ("unet", "scheduler"):
            (new / folder).mkdir()
        name = f"{unet_weights.STEM}{f'.{variant}' if variant else ''}.safetensors"
        unet_weights.write_params(exported.params, new / "unet" / name, dtype)
        files.write_json(new / "scheduler" / "scheduler_config.json", _scheduler_json(config), indent=2)
        files.write_json(new / "unet" / "config.json", unet_config.to_json(described), indent=2)


def predict(
    loaded: stage.Stage,
    sample: jax.Array,
    timestep: jax.Array,
    text: TextCond,
    low_res: jax.Array | None = None,
    noise_level: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Return the network's raw output, (eps_hat, variance), each [B, H, W, C] in float32.

    The variance is not clamped: -1 is the lower and 1 the upper bound of the log-variance. The mask of the text is
    ignored, since the network reads padding too.

    Args:
      loaded: as from `load_stage`.
      sample: [B, H, W, C], the noised image.
      timestep: [B] step of `sample`, from 0 to 999.
      text: B encoded captions.
      low_res: of stage II: [B, H, W, C], the small image, enlarged and noised.
      noise_level: of stage II: [B] step of the noise in `low_res`, from 0 to 999.

    Raises:
      ValueError: an argument is missing, or of the wrong shape or range.
    """
    checks.instance("stage", loaded, stage.Stage, "a Stage, as from load_stage")
    is_right = isinstance(loaded.config.network, IFUNetConfig)
    require(is_right, "stage", "be of DeepFloyd IF, as from deepfloyd.load_stage", loaded.config.network)
    arrays.array("sample", sample, ndim=4)
    is_needed = loaded.config.is_super_resolution
    for name, value in {"low_res": low_res, "noise_level": noise_level}.items():
        rule = "be given to stage II" if is_needed else "be None for stage I"
        require((value is not None) == is_needed, name, rule, value)
    for name, value in {"timestep": timestep, "noise_level": noise_level}.items():
        if value is not None:
            arrays.array(name, value, "real", ndim=1)
            arrays.within(name, value, 0, NUM_STEPS - 1)
    checks.instance("text", text, TextCond, "a TextCond")
    return _predict(loaded, sample, timestep, text, low_res, noise_level)


@jax.jit
def _predict(
    loaded: stage.Stage,
    sample: jax.Array,
    timestep: jax.Array,
    text: TextCond,
    low_res: jax.Array | None,
    noise_level: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    time = lambda step: None if step is None else (jnp.asarray(step, jnp.float32) + 1) / NUM_STEPS
    as_float = lambda image: None if image is None else jnp.asarray(image, jnp.float32)
    cond = Cond(text, low_res_noised=as_float(low_res), aug_logsnr=time(noise_level))
    network = stage.network(loaded.config)
    out = network.apply({"params": loaded.params}, as_float(sample), time(timestep), cond)
    return tuple(jnp.split(out, 2, axis=-1))


# --- files --------------------------------------------------------------------------------------


def _read(directory: str | Path) -> tuple[Path, StageConfig]:
    """Return the directory of the U-Net, and the configuration of the stage."""
    place = locations.local(directory, "directory")
    got = Verbatim(f"{place}, which is no directory")
    require(place.is_dir(), "directory", "be that of a pipeline of DeepFloyd IF or its unet/", got)
    if (place / "model_index.json").is_file():
        _check_pipeline(place / "model_index.json")
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
    return unet, _stage_config(described, unet.parent / "scheduler" / "scheduler_config.json")


def _check_pipeline(file: Path) -> None:
    name = model_files.read_json(file).get("_class_name")
    rule, fix = "be a pipeline of DeepFloyd IF", "give the directory of DeepFloyd/IF-I-* or DeepFloyd/IF-II-*"
    if name == "StableDiffusionUpscalePipeline":
        got = Verbatim(f"{name}, a stage III latent upscaler, which is not a pixel stage")
        raise error(str(file.parent), rule, got, "as third stage, give any super-resolution stage of ours")
    require(name in _PIPELINES, str(file.parent), rule, name, fix)


def _stage_config(described: UNetDescription, scheduler: Path) -> StageConfig:
    is_sr, size = described.is_super_resolution, described.image_size
    ratio, cap = _thresholding(scheduler, 1.0 if is_sr else 1.5)
    schedule = schedules.make("discrete_cosine")
    aug_level = schedules.alpha_sigma(schedule.logsnr((NOISE_LEVEL + 1) / NUM_STEPS))[1]
    sampling = SamplingConfig(
        sampler="ddpm",
        steps=50 if is_sr else 100,
        spacing="respaced",
        respacing="leading",
        guidance_scale=4.0 if is_sr else 7.0,
        threshold="dynamic",
        percentile=ratio,
        cap=cap,
        aug_level=float(aug_level) if is_sr else 0.1,
    )
    config = StageConfig(
        name=f"sr{size}" if is_sr else "base",
        image_size=size,
        low_res_size=size // 4 if is_sr else None,
        image_channels=described.image_channels,
        network=described.network,
        process=ProcessConfig(schedule="discrete_cosine", prediction="eps"),
        sampling=sampling,
        text=TextConfig(_ENCODER, described.text_width, TEXT_LENGTH, clean_captions=True),
    )
    return validate(config)


def _thresholding(scheduler: Path, cap: float) -> tuple[float, float]:
    """Return ratio and cap of dynamic thresholding in a scheduler_config.json, if there is one."""
    if not scheduler.is_file():
        return 0.95, cap
    data = model_files.read_json(scheduler)
    name = partial("{}: {}".format, scheduler)
    for key, value in _SCHEDULER.items():
        found = data.get(key, value)
        require(found == value, name(key), f"be {value!r}", found, "give a scheduler of DeepFloyd IF")
    ratio, cap = data.get("dynamic_thresholding_ratio", 0.95), data.get("sample_max_value", cap)
    return (
        checks.number(name("dynamic_thresholding_ratio"), ratio, "(0, 1]"),
        checks.number(name("sample_max_value"), cap, "[1, 1000000]"),
    )


def _scheduler_json(config: StageConfig) -> dict[str, Any]:
    sampling = config.sampling
    return _SCHEDULER | {
        "_class_name": "DDPMScheduler",
        "clip_sample": True,
        "clip_sample_range": 1.0,
        "dynamic_thresholding_ratio": sampling.percentile or 0.95,
        "sample_max_value": sampling.cap or (1.0 if config.is_super_resolution else 1.5),
        "thresholding": True,
    }
