"""DeepFloyd IF: its published stages in diffusers' layout, loaded, called and written.

Directories are those of `stage_dir.if_pipeline`. The weights are not part of this package. They are under the DeepFloyd
IF licence, which has to be accepted at https://huggingface.co/DeepFloyd before they can be downloaded.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from imagen_jax import arrays, checks, stage
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import StageConfig
from imagen_jax.config.deepfloyd import NUM_STEPS
from imagen_jax.models.if_unet import IFUNetConfig
from imagen_jax.stage_dir import hub, if_pipeline, if_scheduler, loading, unet_config, unet_weights
from imagen_jax.stage_dir.unet_config import UNetDescription
from imagen_jax.storage import directories, files, locations
from imagen_jax.structs import Cond, TextCond

__all__ = ["export", "load_cascade", "load_stage", "predict", "read_config"]


def load_stage(
    directory: str | Path, *, variant: str | None = None, dtype: str = "float32", mesh: Mesh | None = None
) -> stage.Stage:
    """Load a stage of DeepFloyd IF from diffusers' layout, tensor by tensor.

    Args:
      directory: of a pipeline, or its unet/; or hf://OWNER/NAME[@REVISION], a pipeline on the Hugging Face hub.
      variant: of the weight files, such as "fp16"; None: those without one, or the only one there is.
      dtype: of the parameters, "float32" or "bfloat16".
      mesh: parameters are born sharded over its "fsdp" axis; None: on the default device.

    Raises:
      ValueError: the directory holds another pipeline, configuration and weights do not fit each other, or a file
        cannot be read.
    """
    return if_pipeline.load(_downloaded(directory), variant=variant, dtype=dtype, mesh=mesh)


def read_config(directory: str | Path) -> StageConfig:
    """Return the configuration of the stage that `load_stage` would load, without its parameters.

    Raises:
      ValueError: as `load_stage`, but for what is wrong with weights.
    """
    return if_pipeline.read_config(_downloaded(directory))


def _downloaded(directory: str | Path) -> str | Path:
    is_name = isinstance(directory, str) and directory.startswith(hub.SCHEME)
    return hub.download(directory, "directory") if is_name else directory


def load_cascade(places: Sequence[str | Path], *, mesh: Mesh | None = None) -> tuple[stage.Stage, ...]:
    """Load stages of DeepFloyd IF as a cascade, as `imagen_jax.load_cascade` does.

    Args:
      places: of the pipelines of stage I and stage II, as of `load_stage`, and of a further super-resolution stage of
        this package if one follows; in any order.
      mesh: as of `imagen_jax.load_cascade`.

    Raises:
      ValueError: a directory holds another pipeline or cannot be read, or the stages do not follow each other.
    """
    is_list = isinstance(places, list | tuple) and len(places) > 0
    require(is_list, "places", "be a list of directories", places, "give one for each stage")
    return loading.load_cascade(tuple(places), mesh=mesh)


def export(exported: stage.Stage, directory: str | Path, *, dtype: str = "float32", variant: str = "") -> None:
    """Write a stage of DeepFloyd IF as a pipeline in diffusers' layout: its network and its schedulers.

    diffusers reads it with `IFPipeline.from_pretrained(DIRECTORY, text_encoder=..., tokenizer=...)`, stage II with
    `IFSuperResolutionPipeline`. What `load_stage` reads is written to the bit, if `dtype` is that of its weight files
    or float32. The language model is not written: give it as above, or link text_encoder and tokenizer of the pipeline
    that training began from into DIRECTORY, where `load_stage` looks for it.

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
    require(is_plain, "variant", "be empty or a name such as fp16", variant, "leave it out")
    config = exported.config
    is_right = isinstance(config.network, IFUNetConfig)
    require(is_right, "stage", "have the network if_unet, which alone diffusers has", config.network)
    _check_loaded(exported)
    place = locations.local(directory, "directory")
    directories.check_new(place, "directory", needed=unet_weights.num_bytes(exported.params, dtype))
    described = UNetDescription(
        config.network, config.is_super_resolution, config.image_channels, config.image_size, config.text.width
    )
    with directories.writing_new(place) as new:
        (new / "unet").mkdir()
        name = f"{unet_weights.STEM}{f'.{variant}' if variant else ''}.safetensors"
        unet_weights.write_params(exported.params, new / "unet" / name, dtype)
        if_scheduler.write(new, config)
        files.write_json(new / if_pipeline.INDEX, if_pipeline.index(config), indent=2)
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
    _check_loaded(loaded)
    arrays.array("sample", sample, ndim=4)
    channels, rows = loaded.config.image_channels, sample.shape[0]
    fix = "put the channels last"
    require(sample.shape[-1] == channels, "sample", f"be [B, H, W, {channels}]", Verbatim(tuple(sample.shape)), fix)
    is_needed = loaded.config.is_super_resolution
    for name, value in {"low_res": low_res, "noise_level": noise_level}.items():
        rule = "be given to stage II" if is_needed else "be None for stage I"
        require((value is not None) == is_needed, name, rule, value)
    for name, value in {"timestep": timestep, "noise_level": noise_level}.items():
        if value is not None:
            arrays.array(name, value, "real", ndim=1)
            require(value.shape[0] == rows, name, f"be [{rows}], as sample", Verbatim(tuple(value.shape)))
            arrays.within(name, value, 0, NUM_STEPS - 1)
    if low_res is not None:
        arrays.like("low_res", low_res, "sample", sample)
    shape = checks.instance("text", text, TextCond, "a TextCond").check().embeddings.shape
    width = loaded.config.text.width
    rule = f"have embeddings [{rows}, L, {width}], as sample and the network"
    require((shape[0], shape[2]) == (rows, width), "text", rule, Verbatim(tuple(shape)), "encode with its text encoder")
    return _predict(loaded, sample, timestep, text, low_res, noise_level)


def _check_loaded(given: stage.Stage) -> None:
    fix = "load it by deepfloyd.load_stage"
    require(given.params is not None, "stage", "have parameters", Verbatim("a configuration alone"), fix)


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
