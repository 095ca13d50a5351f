"""One diffusion stage: the only place where a network and a diffusion process meet."""

import dataclasses
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from imagen_jax import resize
from imagen_jax.config import EfficientUNetConfig, SamplingConfig, StageConfig, validate_sampling
from imagen_jax.diffusion import augmentation, guidance, losses, process, samplers, schedules, thresholding
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.unet import UNet
from imagen_jax.structs import Cond, TextCond

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class Stage:
    """A stage ready to sample: a pytree whose leaves are `params`; `config` is static and hashable."""

    params: Any
    config: StageConfig = flax.struct.field(pytree_node=False)

    def denoise(self, z_t: jax.Array, logsnr_t: jax.Array, cond: Cond) -> jax.Array:
        """x_hat [B, H, W, C] for z_t [B, H, W, C] at logsnr_t [B], without guidance or thresholding."""
        out = network(self.config).apply({"params": self.params}, z_t, logsnr_t, cond)
        return process.x_from(z_t, out, logsnr_t, self.config.process.prediction)


def network(config: StageConfig) -> nn.Module:
    """The stage's denoising network."""
    options = {
        field.name: getattr(config.network, field.name) for field in dataclasses.fields(config.network)
    }
    cls = EfficientUNet if isinstance(config.network, EfficientUNetConfig) else UNet
    return cls(**options, out_channels=config.image_channels, dtype=compute_dtype(config))


def compute_dtype(config: StageConfig) -> jnp.dtype:
    """bfloat16 on accelerators and float32 on CPUs, unless the configuration says which."""
    name = config.compute_dtype
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def schedule(config: StageConfig) -> schedules.Schedule:
    """The stage's noise schedule."""
    return schedules.make(config.process.schedule, config.image_size)


def named_key(key: jax.Array, name: str) -> jax.Array:
    """The stream called `name` below `key`: the same in every process and version."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def init(config: StageConfig, key: jax.Array) -> Any:
    """Freshly initialised parameters. Pure, so `jax.eval_shape` gives their shapes at no cost."""
    if config.text.width is None:
        raise ValueError(
            f"text.width must be the width of {config.text.encoder} before parameters are made; got None: set it, "
            "as scripts/train.py does."
        )
    size = config.image_size
    image = jnp.zeros((1, size, size, config.image_channels))
    level = jnp.zeros((1,))
    text = TextCond(
        jnp.zeros((1, config.text.length, config.text.width)), jnp.ones((1, config.text.length), bool)
    )
    cond = Cond(text, image, level) if config.is_super_resolution else Cond(text)
    return network(config).init(key, image, level, cond)["params"]


# --- training -----------------------------------------------------------------------------------


@flax.struct.dataclass
class Draws:
    """The random choices of one training batch, one row per image.

    They are drawn for the whole batch at once, so that the times are stratified over it and
    gradient accumulation changes nothing but the order of a sum.
    """

    t: jax.Array  # [B]
    dropped: jax.Array  # [B] bool: caption replaced by the null caption
    aug_level: jax.Array  # [B]
    keys: jax.Array  # [B] for the image-sized noise and dropout


def draw(config: StageConfig, key: jax.Array, batch_size: int) -> Draws:
    """Draws for a batch; a pure function of the key."""
    uniform = partial(jax.random.uniform, shape=(batch_size,))
    return Draws(
        t=losses.stratified_times(named_key(key, "t"), batch_size),
        dropped=uniform(named_key(key, "drop")) < config.process.cond_drop_prob,
        aug_level=uniform(named_key(key, "aug_level"), maxval=config.process.max_aug_level),
        keys=jax.vmap(partial(jax.random.fold_in, named_key(key, "noise")))(jnp.arange(batch_size)),
    )


def loss(params: Any, config: StageConfig, batch: Batch, draws: Draws, *, train: bool = True) -> jax.Array:
    """Mean weighted denoising loss, a scalar.

    Args:
      params: of the network.
      config: of the stage.
      batch: "x" [B, H, W, C] in [-1, 1]; "text" [B, L, D] and "text_mask" [B, L].
      draws: as from `draw`.
      train: False turns dropout off.
    """
    x = batch["x"].astype(jnp.float32)
    logsnr_t = schedule(config).logsnr(draws.t)
    eps = _noise(draws.keys, "eps", x.shape[1:])
    z_t = process.diffuse(x, eps, logsnr_t)
    cond = Cond(TextCond(batch["text"], batch["text_mask"]).drop(draws.dropped))
    if config.is_super_resolution:
        low_res = resize.area(x, config.low_res_size)
        cond = _condition_on_low_res(config, cond, low_res, draws.aug_level, draws.keys)
    rngs = {"dropout": named_key(draws.keys[0], "dropout")}
    out = network(config).apply({"params": params}, z_t, logsnr_t, cond, train=train, rngs=rngs)
    prediction = config.process.prediction
    weight = _loss_weight(config, draws.t, logsnr_t)
    per_image = losses.denoising_loss(
        out, x=x, eps=eps, logsnr_t=logsnr_t, prediction=prediction, weight=weight
    )
    return jnp.mean(per_image)


def _loss_weight(config: StageConfig, t: jax.Array, logsnr_t: jax.Array) -> jax.Array:
    settings = config.process
    if settings.loss_weight == "plain":
        return losses.plain(logsnr_t)
    if settings.loss_weight == "min_snr":
        return losses.min_snr(logsnr_t, settings.prediction, settings.min_snr_gamma, settings.min_snr_floor)
    return losses.sigmoid(
        logsnr_t, settings.prediction, losses.rate(schedule(config), t), settings.sigmoid_bias
    )


def _condition_on_low_res(
    config: StageConfig, cond: Cond, low_res: jax.Array, aug_level: jax.Array, keys: jax.Array
) -> Cond:
    """Up-samples low_res to the stage's size, noises it, and says how much: for training and sampling."""
    low_res = resize.bilinear(low_res, config.image_size)
    eps = _noise(keys, "aug", low_res.shape[1:])
    low_res, aug_logsnr = augmentation.augment(low_res, aug_level, eps)
    return cond.replace(low_res=low_res, aug_logsnr=aug_logsnr)


def _noise(keys: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [B, *shape], from the stream `name` of each image's key."""
    return samplers.normal(jax.vmap(lambda key: named_key(key, name))(keys), shape)


# --- sampling -----------------------------------------------------------------------------------


def image_keys(seed: int, num: int) -> jax.Array:
    """[num] keys. Image i depends on (seed, i) alone: it is the same in any batch, on any mesh."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(num))


def sample_stage(
    stage: Stage,
    text: TextCond,
    keys: jax.Array,
    *,
    low_res: jax.Array | None = None,
    sampling: SamplingConfig | None = None,
) -> jax.Array:
    """Samples one image per caption and key, in one compiled call.

    Args:
      stage: parameters (usually the averaged ones) and configuration.
      text: B encoded captions.
      keys: [B], as from `image_keys`.
      low_res: [B, h, w, C] in [-1, 1] for a super-resolution stage; of any size up to the stage's.
      sampling: replaces the options in the stage's configuration.

    Returns:
      [B, H, W, C] float32 in [-1, 1].
    """
    config = stage.config
    sampling = validate_sampling(config, sampling or config.sampling)
    _check_inputs(config, text, keys, low_res)
    return _sample(stage, text, keys, low_res, sampling)


@partial(jax.jit, static_argnames="sampling")
def _sample(
    stage: Stage, text: TextCond, keys: jax.Array, low_res: jax.Array | None, sampling: SamplingConfig
) -> jax.Array:
    config = stage.config
    keys = jax.vmap(lambda key: named_key(key, config.name))(keys)
    cond = Cond(text)
    if config.is_super_resolution:
        aug_level = jnp.full((len(keys),), sampling.aug_level)
        cond = _condition_on_low_res(config, cond, low_res.astype(jnp.float32), aug_level, keys)
    null = cond.replace(text=text.drop(jnp.ones((len(keys),), bool)))
    denoise = guidance.classifier_free(stage.denoise, cond, null, sampling.guidance_scale)
    denoise = _thresholded(denoise, sampling)
    x = samplers.sample(
        denoise,
        _noise(keys, "z_1", (config.image_size, config.image_size, config.image_channels)),
        schedules.grid(schedule(config), sampling.steps),
        sampler=samplers.make(sampling.sampler, ddpm_gamma=sampling.ddpm_gamma),
        keys=jax.vmap(lambda key: named_key(key, "sampler"))(keys),
    )
    return jnp.clip(x, -1, 1)


def _thresholded(denoise: guidance.DenoiseFn, sampling: SamplingConfig) -> guidance.DenoiseFn:
    threshold: dict[str, Callable[[jax.Array], jax.Array]] = {
        "none": lambda x_hat: x_hat,
        "static": thresholding.static,
        "dynamic": partial(thresholding.dynamic, percentile=sampling.percentile, cap=sampling.cap),
    }
    return lambda z_t, logsnr_t: threshold[sampling.threshold](denoise(z_t, logsnr_t))


def _check_inputs(config: StageConfig, text: TextCond, keys: jax.Array, low_res: jax.Array | None) -> None:
    batch, width = len(keys), text.embeddings.shape[-1]
    if width != config.text.width:
        raise ValueError(
            f"text must have the width {config.text.width} of {config.text.encoder}, which stage "
            f"{config.name} was trained with; got {width}."
        )
    if len(text.embeddings) != batch:
        raise ValueError(
            f"text and keys must have one row per image; got {len(text.embeddings)} and {batch}."
        )
    if config.is_super_resolution != (low_res is not None):
        raise ValueError(
            f"low_res must be {'given to the super-resolution' if config.is_super_resolution else 'None for the base'} "
            f"stage {config.name}; got {'None' if low_res is None else f'shape {low_res.shape}'}."
        )
    if low_res is not None and (len(low_res) != batch or low_res.shape[-1] != config.image_channels):
        raise ValueError(
            f"low_res must be [{batch}, h, w, {config.image_channels}], one per key; got {low_res.shape}."
        )
