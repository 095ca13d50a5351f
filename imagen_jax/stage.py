"""One diffusion stage: the only place where a network and a diffusion process meet."""

import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.errors
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from imagen_jax import arrays, checks, resize, sharding
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import StageConfig
from imagen_jax.diffusion import (
    augmentation,
    losses,
    process,
    samplers,
    schedules,
)
from imagen_jax.diffusion.denoisers import Estimate
from imagen_jax.structs import Cond, TextCond

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class Stage:
    """A stage ready to sample: a pytree whose leaves are `params`; `config` is static and hashable.

    Attributes:
      params: of the network, as from `init`; usually their average over training.
      config: of the stage.
    """

    params: Any
    config: StageConfig = flax.struct.field(pytree_node=False)

    def denoise(
        self, z_t: jax.Array, logsnr_t: jax.Array, cond: Cond, dropout: jax.Array | None = None
    ) -> jax.Array | Estimate:
        """Return x_hat [B, H, W, C] for z_t [B, H, W, C] at logsnr_t [B], without guidance or thresholding.

        A network that predicts its variance makes it an `Estimate` of x_hat and log_variance. A key in `dropout` turns
        dropout on.
        """
        arrays.array("z_t", z_t, ndim=4)
        _check_cond(self.config, cond, z_t.shape)
        arrays.per_image("logsnr_t", arrays.array("logsnr_t", logsnr_t, ndim=1), "z_t", z_t)
        variables = {"params": self.params}
        if cond.features is not None:
            variables["features"] = cond.features
        prediction = self.config.process.prediction
        training = {} if dropout is None else {"train": True, "rngs": {"dropout": dropout}}
        out = _apply(self.config, variables, network_input(z_t, logsnr_t, prediction), logsnr_t, cond, **training)
        out, variance = _parts(self.config, out)
        x_hat = process.x_from(z_t, out, logsnr_t, prediction)
        # From [-1, 1] between the bounds, as in the code of Nichol & Dhariwal (2021), to the [0, 1] of `Estimate`.
        return x_hat if variance is None else Estimate(x_hat, log_variance=(variance + 1) / 2)

    def prepare(self, cond: Cond) -> Cond:
        """Return `cond` with the features that the network computes from it alone, to compute them once for all steps.

        They are what its modules store in the collection "features": in a U-Net the keys and values of the text, its
        pooled vector, and the first layer's convolution of the conditioning images.
        """
        _check_cond(self.config, cond)
        batch, size = len(cond.text.mask), (self.config.image_size,) * 2
        images = [image for image in (cond.low_res_noised, cond.control) if image is not None]
        shape = (batch, *(images[0].shape[1:3] if images else size), self.config.image_channels)
        # Only the features are used, so the compiler removes the rest of the forward pass.
        _, made = _apply(
            self.config, {"params": self.params}, jnp.zeros(shape), jnp.zeros(batch), cond, mutable=["features"]
        )
        return cond.replace(features=made.get("features"))


def _check_cond(config: StageConfig, cond: Any, shape: tuple[int, ...] | None = None) -> None:
    """Raise a ValueError unless a condition is one of a stage, and of images of `shape` [B, H, W, C], if given."""
    checks.instance("cond", cond, Cond, "a Cond").check()
    _check_width("cond.text", config, cond.text)
    for name, channels in (
        ("low_res_noised", config.image_channels * config.is_super_resolution), ("control", config.control_channels)
    ):  # fmt: skip
        image = getattr(cond, name)
        found = 0 if image is None else image.shape[-1]
        require(found == channels, f"cond.{name}", f"have {channels} channels (0: None) in stage {config.name}", found)
    if shape is not None:
        rows, channels = len(cond.text.mask), config.image_channels
        rule = f"be [{rows}, H, W, {channels}], for as many captions"
        require((shape[0], shape[3]) == (rows, channels), "z_t", rule, Verbatim(f"shape {tuple(shape)}"))


def _check_width(name: str, config: StageConfig, text: TextCond) -> None:
    width, expected = text.embeddings.shape[2], config.text.width
    rule = f"have embeddings of width {expected}, as those of {config.text.encoder}"
    require(expected in (None, width), name, rule, width)


def network(config: StageConfig) -> nn.Module:
    """Return the denoising network of a stage, a Linen module; see `NetworkConfig` for how it is called.

    Args:
      config: of the stage.
    """
    return config.network.build(
        out_channels=config.image_channels * (2 if config.network.predicts_variance else 1),
        dtype=compute_dtype(config),
        scan=config.run.scan_blocks,
        remat=config.run.remat,
    )


def _apply(
    config: StageConfig, variables: Any, z_in: jax.Array, logsnr_t: jax.Array, cond: Cond, **options: Any
) -> Any:
    """Return what the network's `apply` returns; raises a ValueError for parameters of another network."""
    level = logsnr_t
    if config.network.noise_level == "time":
        time = schedule(config).inverse
        level, aug = time(logsnr_t), cond.aug_logsnr
        cond = cond if aug is None else cond.replace(aug_logsnr=time(aug))
    try:
        return network(config).apply(variables, z_in, level, cond, **options)
    except flax.errors.FlaxError as error:
        reason = " ".join(str(error).split())[:200]
        rule = f"be the parameters of the network of stage {config.name}"
        raise checks.error("params", rule, Verbatim(f"others ({reason})")) from error


def _parts(config: StageConfig, out: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Return the prediction and the variance, or None, of a network's output [B, H, W, C or 2 C]."""
    if not config.network.predicts_variance:
        return out, None
    return out[..., : config.image_channels], out[..., config.image_channels :]


def compute_dtype(config: StageConfig) -> jnp.dtype:
    """Return the type that the network computes in; for "auto", bfloat16 on accelerators and float32 on CPUs."""
    name = config.compute_dtype
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def schedule(config: StageConfig, name: str | None = None) -> schedules.Schedule:
    """Return a noise schedule for the size of a stage's images.

    Args:
      config: of the stage.
      name: in `schedules.SCHEDULES`; None: the one of training.
    """
    made = schedules.make(name or config.process.schedule, config.image_size)
    return schedules.zero_terminal(made) if config.process.zero_terminal_snr else made


def network_input(z_t: jax.Array, logsnr_t: jax.Array, prediction: str) -> jax.Array:
    """Return z_t [B, H, W, C] scaled to the input of the network, by the factor of the prediction (EDM's c_in)."""
    return z_t * process.expand(process.network_scale(logsnr_t, prediction), z_t)


def named_key(key: jax.Array, name: str) -> jax.Array:
    """Return the key of the stream `name` below `key`, the same in every process and version."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def init(config: StageConfig, key: jax.Array) -> Any:
    """Return random parameters of the network, a dict of float32 arrays.

    A pure function: `jax.eval_shape` gives their shapes without computing them. Use `jax.jit` with `config` static.

    Args:
      config: of the stage; `text.width` must be set.
      key: a PRNG key.

    Raises:
      ValueError: `text.width` is None.
    """
    checks.instance("config", config, StageConfig, "a StageConfig")
    arrays.key("key", key)
    rule = f"be the width of {config.text.encoder} before parameters are made"
    require(config.text.width is not None, "text.width", rule, None, "set it, as imagen-jax train does")
    size = config.image_size
    image = jnp.zeros((1, size, size, config.image_channels))
    level = jnp.zeros((1,))
    text = TextCond(
        jnp.zeros((1, config.text.length, config.text.width)), jnp.ones((1, config.text.length), bool)
    )
    cond = Cond(text, image, level) if config.is_super_resolution else Cond(text)
    if config.control_channels:
        cond = cond.replace(control=jnp.zeros((1, size, size, config.control_channels)))
    return network(config).init(key, image, level, cond)["params"]


# --- Training -----------------------------------------------------------------------------------


@flax.struct.dataclass
class Draws:
    """Random draws for one training batch, one row per image.

    They are drawn for the whole batch at once, so that the times are stratified over it and gradient accumulation
    changes only the order of a sum.

    Attributes:
      t: [B] times in [0, 1).
      dropped: [B] bool, whether the caption is replaced by the null caption.
      aug_level: [B], sigma of the noise added to the low-res image.
      keys: [B] for the image-sized noise and dropout.
    """

    t: jax.Array
    dropped: jax.Array
    aug_level: jax.Array
    keys: jax.Array


def draw(config: StageConfig, key: jax.Array, batch_size: int) -> Draws:
    """Return the random draws for one batch of training, a function of the arguments alone.

    Args:
      config: of the stage, for `cond_drop_prob`, `max_aug_level` and the distribution of times of its `process`.
      key: a PRNG key.
      batch_size: B, images in the batch.

    Raises:
      ValueError: an argument is of the wrong type or range.
    """
    checks.instance("config", config, StageConfig, "a StageConfig")
    arrays.key("key", key)
    batch_size = checks.whole("batch_size", checks.plain(batch_size), 1)
    uniform = partial(jax.random.uniform, shape=(batch_size,))
    t, settings = losses.stratified_times(named_key(key, "t"), batch_size), config.process
    if settings.times == "logit_normal":
        t = losses.logit_normal(t, settings.logit_normal_mean, settings.logit_normal_std)
    return Draws(
        t=t,
        dropped=uniform(named_key(key, "drop")) < settings.cond_drop_prob,
        aug_level=uniform(named_key(key, "aug_level"), maxval=settings.max_aug_level),
        keys=jax.vmap(partial(jax.random.fold_in, named_key(key, "noise")))(jnp.arange(batch_size)),
    )


def loss(params: Any, config: StageConfig, batch: Batch, draws: Draws, *, train: bool = True) -> jax.Array:
    """Return the mean weighted denoising loss of a batch, a float32 scalar.

    Args:
      params, config, batch, draws, train: see `image_losses`.
    """
    return jnp.mean(image_losses(params, config, batch, draws, train=train)[0])


def image_losses(
    params: Any, config: StageConfig, batch: Batch, draws: Draws, *, train: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Return (loss [B], logsnr_t [B]): the weighted denoising loss of each image and the log-SNR it was noised to.

    Args:
      params: of the network.
      config: of the stage.
      batch: "x" [B, H, W, C] float in [-1, 1], H and W of config.train_size; "text" [B, L, D] float and "text_mask"
        [B, L] bool of all captions, since `draws` has those to drop; "control" [B, H, W, C'] in [-1, 1] for a stage
        with control_channels; "null", a TextCond of one row that takes the place of dropped captions, where the network
        reads the empty caption (else they become zeros). The low-res image of super-resolution is computed from "x".
      draws: as from `draw`, for B images.
      train: turns dropout on.

    Raises:
      ValueError: batch or draws do not fit the stage. Inside `jax.jit` values are not checked.
    """
    check_batch(config, batch, draws)
    train = checks.boolean("train", train)
    logsnr_t = schedule(config).logsnr(draws.t)
    x, eps, z_t, cond = noised(config, batch, draws, logsnr_t)
    return losses_of(params, config, draws, z_t, logsnr_t, cond, x=x, eps=eps, train=train), logsnr_t


def losses_of(
    params: Any,
    config: StageConfig,
    draws: Draws,
    z_t: jax.Array,
    logsnr_t: jax.Array,
    cond: Cond,
    *,
    x: jax.Array,
    eps: jax.Array,
    train: bool = True,
) -> jax.Array:
    """Return the weighted denoising loss [B] of images that are noised already, and of any targets.

    Args:
      params, config, draws, train: as of `image_losses`.
      z_t, logsnr_t, cond: as from `noised`.
      x, eps: [B, H, W, C] what the network shall find in z_t.
    """
    rngs = {"dropout": named_key(draws.keys[0], "dropout")}
    prediction = config.process.prediction
    z_in = network_input(z_t, logsnr_t, prediction)
    out = _apply(config, {"params": params}, z_in, logsnr_t, cond, train=train, rngs=rngs)
    out, _ = _parts(config, out)  # the variance has no loss
    weight = _loss_weight(config, draws.t, logsnr_t)
    return losses.denoising_loss(out, x=x, eps=eps, logsnr_t=logsnr_t, prediction=prediction, weight=weight)


def noised(
    config: StageConfig, batch: Batch, draws: Draws, logsnr_t: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, Cond]:
    """Return (x, eps, z_t, cond) of a training batch: z_t [B, H, W, C] at logsnr_t [B], and what it is conditioned on.

    Args:
      config, batch, draws: as of `image_losses`, checked by `check_batch`.
      logsnr_t: [B].
    """
    x = sharding.constrain_images(jnp.asarray(batch["x"], jnp.float32))
    eps = image_noise(draws.keys, "eps", x.shape[1:])
    z_t = process.diffuse(x, eps, logsnr_t)
    cond = Cond(TextCond(batch["text"], batch["text_mask"]).drop(draws.dropped, batch.get("null")))
    if config.is_super_resolution:
        low_res = resize.area(x, config.train_size * config.low_res_size // config.image_size)
        cond = condition_on_low_res(config, cond, low_res, draws.aug_level, draws.keys)
    if config.control_channels:
        cond = cond.replace(control=jnp.asarray(batch["control"], jnp.float32))
    return x, eps, z_t, cond


def check_batch(config: StageConfig, batch: Any, draws: Any) -> None:
    """Raise a ValueError for a batch that the stage cannot be trained with; outside jit, for its values as well."""
    checks.instance("config", config, StageConfig, "a StageConfig")
    names = ["x", "text", "text_mask", *(["control"] if config.control_channels else [])]
    rule = f"have control in a stage with control_channels alone, which {config.name} is not"
    has_all = isinstance(batch, Mapping) and not set(names) - set(batch)
    got = sorted(map(str, batch)) if isinstance(batch, Mapping) else batch
    require(has_all, "batch", f"be a dict of {', '.join(names)}", got)
    require("control" in names or "control" not in batch, "batch", rule, got)
    checks.instance("draws", draws, Draws, "Draws, as from draw")
    text = TextCond(batch["text"], batch["text_mask"]).check('batch["text"], batch["text_mask"]')
    size, rows = config.train_size, len(text.mask)
    for name, channels in (("x", config.image_channels), ("control", config.control_channels)):
        if name in names:
            named, shape = f'batch["{name}"]', (rows, size, size, channels)
            value = arrays.floats_of_pictures(named, batch[name])
            require(tuple(value.shape) == shape, named, f"be {list(shape)}", Verbatim(tuple(value.shape)))
            arrays.pictures(named, value)
    _check_width('batch["text"]', config, text)
    text.check_values('batch["text"]')
    arrays.leaves('batch["text"], batch["text_mask"]', text, "one row for each image")
    for name, kind in {"t": "floats", "dropped": "bool", "aug_level": "floats"}.items():
        value = arrays.array(f"draws.{name}", getattr(draws, name), kind, ndim=1)
        require(value.shape[0] == rows, f"draws.{name}", f"have {rows} rows", value.shape[0])
        arrays.within(f"draws.{name}", value, 0, 1)
    got = arrays.keys("draws.keys", draws.keys).shape[0]
    require(got == rows, "draws.keys", f"have {rows} rows", got)


def _loss_weight(config: StageConfig, t: jax.Array, logsnr_t: jax.Array) -> jax.Array:
    settings = config.process
    if settings.loss_weight == "plain":
        return losses.plain(logsnr_t)
    if settings.loss_weight == "min_snr":
        return losses.min_snr(logsnr_t, settings.prediction, settings.min_snr_gamma, settings.min_snr_floor)
    if settings.loss_weight == "v":
        return losses.v(logsnr_t, settings.prediction, settings.v_cap)
    rate = losses.rate(schedule(config), t)
    if settings.times == "logit_normal":
        rate /= losses.logit_normal_density(t, settings.logit_normal_mean, settings.logit_normal_std)
    return losses.sigmoid(logsnr_t, settings.prediction, rate, settings.sigmoid_bias)


def condition_on_low_res(
    config: StageConfig, cond: Cond, low_res: jax.Array, aug_level: jax.Array, keys: jax.Array
) -> Cond:
    """Return `cond` with the low-res image enlarged and noised, and with its log-SNR, as in training and sampling.

    Args:
      config: of a super-resolution stage.
      cond: of B captions.
      low_res: [B, h, w, C] in [-1, 1].
      aug_level: [B] in [0, 1], sigma of the noise.
      keys: [B], one for each image.
    """
    enlarge = resize.bilinear_corners if config.network.aligns_corners else resize.bilinear
    enlarged = enlarge(low_res, output_size(config, low_res.shape[1:3]))
    eps = image_noise(keys, "aug", enlarged.shape[1:])
    low_res_noised, aug_logsnr = augmentation.augment(enlarged, aug_level, eps)
    return cond.replace(low_res_noised=low_res_noised, aug_logsnr=aug_logsnr)


def image_noise(keys: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
    """Return standard normal noise [B, *shape] from the stream `name` of each image's key."""
    return samplers.normal(jax.vmap(lambda key: named_key(key, name))(keys), shape)


# --- Sampling -----------------------------------------------------------------------------------


def image_keys(seed: int, num: int) -> jax.Array:
    """Return [num] keys. Key i depends on (seed, i) alone, so that image i is the same in any batch, on any mesh.

    Args:
      seed: a whole number from 0 to 2^32 - 1.
      num: of images, at least 1.

    Raises:
      ValueError: seed or num is out of range.
    """
    seed, num = checks.seed(seed), checks.whole("num", checks.plain(num), 1)
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(num))


def output_size(config: StageConfig, low_res_size: tuple[int, int]) -> tuple[int, int]:
    """Return (H, W) of a super-resolution stage's output for a low-res image of size (h, w)."""
    return tuple(side * config.image_size // config.low_res_size for side in low_res_size)
