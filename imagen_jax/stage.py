"""One diffusion stage: the only place where a network and a diffusion process meet."""

import dataclasses
import zlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.errors
import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import arrays, checks, parallel, resize
from imagen_jax.checks import Said, require
from imagen_jax.config import EfficientUNetConfig, SamplingConfig, StageConfig
from imagen_jax.diffusion import (
    augmentation,
    editing,
    guidance,
    losses,
    process,
    samplers,
    schedules,
    thresholding,
)
from imagen_jax.inputs import Inputs, check_inputs, check_request, check_size
from imagen_jax.models.efficient_unet import EfficientUNet
from imagen_jax.models.unet import UNet
from imagen_jax.structs import Cond, TextCond
from imagen_jax.validation import validate_sampling

Batch = dict[str, jax.Array]


@flax.struct.dataclass
class Stage:
    """A stage ready to sample: a pytree whose leaves are `params`; `config` is static and hashable.

    Attributes:
      params: of the network, usually the averaged ones; as from `init`.
      config: what the stage is.
    """

    params: Any
    config: StageConfig = flax.struct.field(pytree_node=False)

    def denoise(self, z_t: jax.Array, logsnr_t: jax.Array, cond: Cond) -> jax.Array:
        """x_hat [B, H, W, C] for z_t [B, H, W, C] at logsnr_t [B], without guidance or thresholding."""
        checks.instance("cond", cond, Cond, "a Cond")
        variables = {"params": self.params}
        if cond.features is not None:
            variables["features"] = cond.features
        prediction = self.config.process.prediction
        arrays.array("z_t", z_t, ndim=4)
        out = _apply(self.config, variables, network_input(z_t, logsnr_t, prediction), logsnr_t, cond)
        return process.x_from(z_t, out, logsnr_t, prediction)

    def prepare(self, cond: Cond) -> Cond:
        """`cond` with all that depends on it alone (the keys and values of the text, its pooled vector, the low-res
        image's share of the first layer), computed once for all steps."""
        checks.instance("cond", cond, Cond, "a Cond").check()
        batch, size = len(cond.text.mask), (self.config.image_size,) * 2
        beside = [image for image in (cond.low_res, cond.image) if image is not None]
        shape = (batch, *(beside[0].shape[1:3] if beside else size), self.config.image_channels)
        # Nothing of the forward pass but the features is used, so the compiler leaves the rest out.
        _, made = _apply(
            self.config, {"params": self.params}, jnp.zeros(shape), jnp.zeros(batch), cond, mutable=["features"]
        )
        return cond.replace(features=made["features"])


def network(config: StageConfig) -> nn.Module:
    """The denoising network that `config` describes, a Linen module: (z_t, logsnr_t, cond) -> out [B, H, W, C]."""
    options = {
        field.name: getattr(config.network, field.name) for field in dataclasses.fields(config.network)
    }
    cls = EfficientUNet if isinstance(config.network, EfficientUNetConfig) else UNet
    return cls(
        **options,
        out_channels=config.image_channels,
        dtype=compute_dtype(config),
        scan=config.run.scan_blocks,
        remat=config.run.remat,
    )


def _apply(config: StageConfig, variables: Any, *inputs: Any, **options: Any) -> Any:
    """The network's `apply`; parameters that are not its own are a ValueError."""
    try:
        return network(config).apply(variables, *inputs, **options)
    except flax.errors.FlaxError as error:
        reason = " ".join(str(error).split())[:200]
        rule = f"be the parameters of the network of stage {config.name}"
        raise checks.error("params", rule, Said(f"others ({reason})")) from error


def compute_dtype(config: StageConfig) -> jnp.dtype:
    """bfloat16 on accelerators and float32 on CPUs, unless the configuration says which."""
    name = config.compute_dtype
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def schedule(config: StageConfig, name: str | None = None) -> schedules.Schedule:
    """The noise schedule that `config` trains on, or the one called `name` at the stage's size."""
    made = schedules.make(name or config.process.schedule, config.image_size)
    return schedules.zero_terminal(made) if config.process.zero_terminal_snr else made


def network_input(z_t: jax.Array, logsnr_t: jax.Array, prediction: str) -> jax.Array:
    """z_t as the network sees it."""
    return z_t * process.expand(process.network_scale(logsnr_t, prediction), z_t)


def named_key(key: jax.Array, name: str) -> jax.Array:
    """The stream called `name` below `key`: the same in every process and version."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def init(config: StageConfig, key: jax.Array) -> Any:
    """Random parameters of the network: a dict of float32 arrays.

    Pure, so that `jax.eval_shape` gives their shapes at no cost; jit it with `config` static.

    Args:
      config: of the stage; `text.width` must be set.
      key: a PRNG key.

    Raises:
      ValueError: `text.width` is None.
    """
    checks.instance("config", config, StageConfig, "a StageConfig")
    arrays.key("key", key)
    rule = f"be the width of {config.text.encoder} before parameters are made"
    require(config.text.width is not None, "text.width", rule, None, "set it, as scripts/train.py does")
    size = config.image_size
    image = jnp.zeros((1, size, size, config.image_channels))
    level = jnp.zeros((1,))
    text = TextCond(
        jnp.zeros((1, config.text.length, config.text.width)), jnp.ones((1, config.text.length), bool)
    )
    cond = Cond(text, image, level) if config.is_super_resolution else Cond(text)
    if config.cond_image_channels:
        cond = cond.replace(image=jnp.zeros((1, size, size, config.cond_image_channels)))
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
    """All that is random for one batch of training.

    Args:
      config: of the stage, for its rates (`process.cond_drop_prob`, `process.max_aug_level`).
      key: a PRNG key; the draws are a function of it alone.
      batch_size: B, images in the batch.
    """
    checks.instance("config", config, StageConfig, "a StageConfig")
    arrays.key("key", key)
    batch_size = checks.whole("batch_size", batch_size, 1)
    uniform = partial(jax.random.uniform, shape=(batch_size,))
    return Draws(
        t=losses.stratified_times(named_key(key, "t"), batch_size),
        dropped=uniform(named_key(key, "drop")) < config.process.cond_drop_prob,
        aug_level=uniform(named_key(key, "aug_level"), maxval=config.process.max_aug_level),
        keys=jax.vmap(partial(jax.random.fold_in, named_key(key, "noise")))(jnp.arange(batch_size)),
    )


def loss(params: Any, config: StageConfig, batch: Batch, draws: Draws, *, train: bool = True) -> jax.Array:
    """Mean weighted denoising loss of a batch: a float32 scalar, to be differentiated with respect to `params`.

    Args:
      params, config, batch, draws, train: see `image_losses`.
    """
    return jnp.mean(image_losses(params, config, batch, draws, train=train)[0])


def image_losses(
    params: Any, config: StageConfig, batch: Batch, draws: Draws, *, train: bool = True
) -> tuple[jax.Array, jax.Array]:
    """Weighted denoising loss of each image and the log-SNR that it was noised to: [B], [B].

    Args:
      params: of the network.
      config: of the stage.
      batch: "x" [B, H, W, C] float in [-1, 1], H and W of config.train_size; "text" [B, L, D] float and "text_mask"
        [B, L] bool, of all captions, for `draws` say which are dropped; "cond_image" [B, H, W, C'] in [-1, 1] for a
        stage with cond_image_channels. The low-res image of super-resolution is made of "x".
      draws: as from `draw`, for B images.
      train: False turns dropout off.
    """
    _check_batch(config, batch, draws)
    train = checks.boolean("train", train)
    x = parallel.constrain_images(jnp.asarray(batch["x"], jnp.float32))
    logsnr_t = schedule(config).logsnr(draws.t)
    eps = _noise(draws.keys, "eps", x.shape[1:])
    z_t = process.diffuse(x, eps, logsnr_t)
    cond = Cond(TextCond(batch["text"], batch["text_mask"]).drop(draws.dropped))
    if config.is_super_resolution:
        low_res = resize.area(x, config.train_size * config.low_res_size // config.image_size)
        cond = _condition_on_low_res(config, cond, low_res, draws.aug_level, draws.keys)
    if config.cond_image_channels:
        cond = cond.replace(image=jnp.asarray(batch["cond_image"], jnp.float32))
    rngs = {"dropout": named_key(draws.keys[0], "dropout")}
    prediction = config.process.prediction
    z_in = network_input(z_t, logsnr_t, prediction)
    out = _apply(config, {"params": params}, z_in, logsnr_t, cond, train=train, rngs=rngs)
    weight = _loss_weight(config, draws.t, logsnr_t)
    per_image = losses.denoising_loss(
        out, x=x, eps=eps, logsnr_t=logsnr_t, prediction=prediction, weight=weight
    )
    return per_image, logsnr_t


def _check_batch(config: StageConfig, batch: Any, draws: Any) -> None:
    """Raises a ValueError for a batch that the stage cannot be trained with; for its values too, outside jit."""
    checks.instance("config", config, StageConfig, "a StageConfig")
    names = ["x", "text", "text_mask", *(["cond_image"] if config.cond_image_channels else [])]
    has_all = isinstance(batch, Mapping) and not set(names) - set(batch)
    got = sorted(map(str, batch)) if isinstance(batch, Mapping) else batch
    require(has_all, "batch", f"be a dict of {', '.join(names)}", got)
    checks.instance("draws", draws, Draws, "Draws, as from draw")
    text = TextCond(batch["text"], batch["text_mask"]).check('batch["text"], batch["text_mask"]')
    size, rows = config.train_size, len(text.mask)
    for name, channels in (("x", config.image_channels), ("cond_image", config.cond_image_channels)):
        if name in names:
            named, shape = f'batch["{name}"]', (rows, size, size, channels)
            value = arrays.floats_of_pictures(named, batch[name])
            require(tuple(value.shape) == shape, named, f"be {list(shape)}", Said(tuple(value.shape)))
            arrays.pictures(named, value)
    text.check_values('batch["text"]')
    arrays.held('batch["text"], batch["text_mask"]', text, "one row for each image")
    arrays.one_each("draws.t", draws.t, 'batch["x"]', batch["x"])
    for name, kind in {"dropped": "real", "aug_level": "floats"}.items():
        value = arrays.array(f"draws.{name}", getattr(draws, name), kind, ndim=1)
        require(value.shape[0] == rows, f"draws.{name}", f"have {rows} rows", value.shape[0])
    got = arrays.keys("draws.keys", draws.keys).shape[0]
    require(got == rows, "draws.keys", f"have {rows} rows", got)


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
    """Up-samples low_res by the stage's factor, noises it, and says how much: for training and sampling."""
    low_res = resize.bilinear(low_res, output_size(config, low_res.shape[1:3]))
    eps = _noise(keys, "aug", low_res.shape[1:])
    low_res, aug_logsnr = augmentation.augment(low_res, aug_level, eps)
    return cond.replace(low_res=low_res, aug_logsnr=aug_logsnr)


def _noise(keys: jax.Array, name: str, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal [B, *shape], from the stream `name` of each image's key."""
    return samplers.normal(jax.vmap(lambda key: named_key(key, name))(keys), shape)


# --- sampling -----------------------------------------------------------------------------------


def image_keys(seed: int, num: int) -> jax.Array:
    """[num] keys. Image i depends on (seed, i) alone: it is the same in any batch, on any mesh.

    Args:
      seed: a whole number from 0 to 2^32 - 1.
      num: of images, at least 1.

    Raises:
      ValueError: for any other seed or number.
    """
    seed, num = checks.seed(seed), checks.whole("num", num, 1)
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(num))


def output_size(config: StageConfig, low_res_size: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of what a super-resolution stage makes of a low-res image of (h, w)."""
    return tuple(side * config.image_size // config.low_res_size for side in low_res_size)


def sample_stage(
    stage: Stage,
    text: TextCond | Sequence[TextCond],
    keys: jax.Array,
    *,
    low_res: jax.Array | None = None,
    sampling: SamplingConfig | None = None,
    negative: TextCond | None = None,
    weights: Sequence[float] | None = None,
    weak: Stage | None = None,
    image: jax.Array | None = None,
    mask: jax.Array | None = None,
    cond_image: jax.Array | None = None,
    z_1: jax.Array | None = None,
    size: tuple[int, int] | None = None,
    return_info: bool = False,
    trajectory: bool = False,
    callback: Callable[[jax.Array, jax.Array], None] | None = None,
) -> Any:
    """Samples one image per caption and key, in one compiled call.

    Args:
      stage: parameters (usually the averaged ones) and configuration.
      text: B encoded captions; or several such batches, whose estimates are averaged with `weights`.
      keys: [B], as from `image_keys`.
      low_res: [B, h, w, C] in [-1, 1] for a super-resolution stage, the size that its configuration says.
      sampling: replaces the options in the stage's configuration.
      negative: [B or 1] captions to steer away from, in place of the null caption.
      weights: one for each batch of text; they sum to 1.
      weak: a weaker stage to steer away from, in place of the null caption (autoguidance).
      image: [B, H, W, C] to start from (`sampling.strength` below 1) or to paint in (`mask`).
      mask: [B, H, W] or [B, H, W, 1]: 1 = paint here, 0 = keep the image.
      cond_image: [B, H, W, C'] for a stage with cond_image_channels.
      z_1: [B, H, W, C] initial noise, standard normal, in place of that of the keys.
      size: (H, W) of the result, if not the stage's own; low_res is smaller by the stage's factor.
      return_info, trajectory, callback: see `samplers.sample`. The callback is static: another one compiles anew.

    Returns:
      [B, H, W, C] float32 in [-1, 1]; with return_info (that, `samplers.Info`).

    Raises:
      ValueError: an argument is of the wrong type, shape or range, or does not fit the stage; pictures are floats in
        [-1, 1]. Inside `jax.jit` values are not known, and not looked at.
      FloatingPointError: the network returned NaN or infinity; says at which step. Inside `jax.jit` nothing
        can be raised: such images are NaN.
    """
    config = check_params("stage", require_stage("stage", stage)).config
    if weak is not None:
        check_params("weak", require_stage("weak", weak))
    size = check_size(size) or (config.image_size,) * 2
    sampling = config.sampling if sampling is None else sampling
    inputs = Inputs(low_res, negative, weak, image, mask, cond_image, z_1)
    texts, weights = check_request(text, keys, weights, inputs)
    check_stage(config, texts, keys, inputs, sampling, size)
    return_info, trajectory = checks.boolean("return_info", return_info), checks.boolean("trajectory", trajectory)
    is_function = callback is None or (callable(callback) and isinstance(callback, Hashable))
    require(is_function, "callback", "be a function of (step, x_hat) that has a hash", callback)
    rule = "come with return_info, which holds it"
    require(return_info or not trajectory, "trajectory", rule, Said("return_info False"))
    x, info = run_stage(stage, texts, keys, inputs, sampling, weights, size, trajectory, callback)
    raise_if_broken(stage.config, info)
    return (x, info) if return_info else x


def require_stage(name: str, value: Any) -> Stage:
    """Return `value`, if it is a Stage with a configuration; `name` is for messages."""
    is_stage = isinstance(value, Stage) and isinstance(value.config, StageConfig)
    require(is_stage, name, "be a Stage, as from load_stage", value)
    return value


def check_params(name: str, stage: Stage) -> Stage:
    """Return `stage`, if its parameters are a tree of arrays; whether of its network shows when that is called."""
    named, value = f"{name}.params", stage.params
    require(isinstance(value, Mapping), named, "be a dict of arrays, as from load_stage", value)
    arrays.held(named, value, "as from load_stage")
    return stage


def run_stage(
    stage: Stage,
    texts: tuple[TextCond, ...],
    keys: jax.Array,
    inputs: Inputs,
    sampling: SamplingConfig,
    weights: tuple[float, ...] | None,
    size: tuple[int, int],
    trajectory: bool = False,
    callback: Callable[[jax.Array, jax.Array], None] | None = None,
) -> tuple[jax.Array, samplers.Info]:
    """`sample_stage` for a caller that has called `check_stage` and looks for broken images itself: (x, info)."""
    if inputs.mask is not None:
        inputs = inputs.replace(mask=inputs.mask.reshape(inputs.image.shape[:3] + (1,)))
    values = {
        "guidance_scale": jnp.float32(sampling.guidance_scale),
        "aug_level": jnp.float32(sampling.aug_level),
    }
    # Compiled once for all scales, aug levels and grids of as many steps.
    fixed = dataclasses.replace(
        sampling, guidance_scale=0.0 if sampling.is_guided else 1.0, aug_level=0.0, schedule=None, spacing="t",
        sigma_min=None, sigma_max=None, rho=None, strength=1.0 if sampling.strength == 1 else 0.5,
    )  # fmt: skip
    return _sample(
        stage, texts, keys, inputs, logsnr_grid(stage.config, sampling), values, sampling=fixed, weights=weights,
        size=size, trajectory=trajectory, callback=callback,
    )  # fmt: skip


def check_stage(
    config: StageConfig,
    texts: Sequence[TextCond],
    keys: jax.Array,
    inputs: Inputs,
    sampling: SamplingConfig,
    size: tuple[int, int],
) -> None:
    """Raises a ValueError for anything that the stage cannot be sampled with; `inputs` may be mere shapes."""
    validate_sampling(config, sampling, needs_null=inputs.weak is None)
    check_inputs(config, texts, keys, inputs, sampling, size)
    logsnr_grid(config, sampling)
    _sampler(sampling)


def logsnr_grid(config: StageConfig, sampling: SamplingConfig) -> jax.Array:
    """The log-SNRs [T+1], noisiest first, on which a stage of `config` is sampled with the options `sampling`; T is in
    proportion to `strength`."""
    options = {name: getattr(sampling, name) for name in ("sigma_min", "sigma_max", "rho")}
    steps = max(1, round(sampling.steps * sampling.strength))
    with jax.ensure_compile_time_eval():
        grid = schedules.grid(
            schedule(config, sampling.schedule),
            steps,
            sampling.spacing,
            start=sampling.strength,
            **{name: value for name, value in options.items() if value is not None},
        )
        levels = np.asarray(grid)
    is_falling = bool((np.diff(levels) > 0).all())
    name, value = ("steps", sampling.steps) if levels[0] < levels[-1] else ("strength", sampling.strength)
    rule = "be larger, so that some noise is left at the start" if name == "strength" else "be fewer"
    what = f"schedule {sampling.schedule or config.process.schedule!r} and spacing {sampling.spacing!r}"
    require(is_falling, name, f"{rule} with {what}, whose levels of noise are equal in float32", value)
    return grid


def evaluations(config: StageConfig, sampling: SamplingConfig) -> int:
    """How many images go through the network of `config` for one result with the options `sampling`: two a guided step,
    twice as many with Heun."""
    grid = np.asarray(logsnr_grid(config, sampling))
    weight = np.full(len(grid), sampling.guidance_scale)
    with jax.ensure_compile_time_eval():
        scale = _scale(sampling, jnp.float32(sampling.guidance_scale), jnp.asarray(grid))
        weight = np.asarray(scale(jnp.asarray(grid))) if callable(scale) else weight
    images = np.where((weight != 1) | (sampling.guidance == "cfg++"), 2, 1)
    total = images[:-1].sum()
    if sampling.sampler == "heun":  # a second evaluation at the level that a step leads to
        corrected = (np.diff(grid) / 2 <= samplers.LONGEST_HEUN) & (np.arange(len(grid) - 1) < len(grid) - 2)
        total += images[1:][corrected].sum()
    return int(total) * sampling.resample


def raise_if_broken(config: StageConfig, info: samplers.Info) -> None:
    """Raises a FloatingPointError that names the stage, the step and the images; inside jit it does nothing."""
    if isinstance(info.broken_at, jax.core.Tracer):
        return
    step, count, row = np.asarray(_summary(info.broken_at))
    if count:
        raise FloatingPointError(
            f"stage {config.name}: the network must return finite numbers; got NaN or infinity at step {step}, "
            f"in {count} of {len(info.broken_at)} images (the first is row {row}). Check that training has not "
            "diverged, or compute in float32 (compute_dtype)."
        )


@jax.jit
def _summary(broken_at: jax.Array) -> jax.Array:
    """[3] first step, number of images, first row: replicated, so that every process can read it."""
    is_broken = broken_at > 0
    first = jnp.min(jnp.where(is_broken, broken_at, jnp.iinfo(jnp.int32).max))
    return jnp.stack([first, jnp.sum(is_broken), jnp.argmax(is_broken)])


@partial(jax.jit, static_argnames=("sampling", "weights", "size", "trajectory", "callback"))
def _sample(
    stage: Stage,
    texts: tuple[TextCond, ...],
    keys: jax.Array,
    inputs: Inputs,
    grid: jax.Array,
    values: dict[str, jax.Array],
    *,
    sampling: SamplingConfig,
    weights: tuple[float, ...] | None,
    size: tuple[int, int],
    trajectory: bool,
    callback: Callable | None,
) -> tuple[jax.Array, samplers.Info]:
    config = stage.config
    keys = jax.vmap(lambda key: named_key(key, config.name))(keys)
    cond = Cond(texts[0], image=inputs.cond_image)
    if config.is_super_resolution:
        aug_level = jnp.broadcast_to(values["aug_level"], (len(keys),))
        cond = _condition_on_low_res(config, cond, inputs.low_res.astype(jnp.float32), aug_level, keys)
        cond = cond.replace(low_res=parallel.constrain_images(cond.low_res))
    denoise = _denoiser(stage, cond, texts, inputs, grid, values["guidance_scale"], sampling, weights)
    z_1 = inputs.z_1
    if z_1 is None:
        z_1 = _noise(keys, "z_1", (*size, config.image_channels))
    if sampling.strength < 1:
        z_1 = process.diffuse(inputs.image.astype(jnp.float32), z_1, grid[0])
    elif inputs.mask is not None:  # a grid may start below pure noise: the known part is exact there too
        z_1 = editing.merge(z_1, process.diffuse(inputs.image.astype(jnp.float32), z_1, grid[0]), inputs.mask)
    x, info = samplers.sample(
        denoise,
        parallel.constrain_images(z_1),
        grid,
        sampler=_sampler(sampling),
        keys=jax.vmap(lambda key: named_key(key, "sampler"))(keys),
        resample=sampling.resample,
        jump=sampling.jump,
        return_info=True,
        trajectory=trajectory,
        callback=callback,
    )
    if inputs.mask is not None:
        x = editing.merge(x, inputs.image, inputs.mask)
    x = jnp.clip(x, -1, 1)
    broken = process.expand(info.broken_at > 0, x)
    return jnp.where(broken, jnp.nan, x), info


def _denoiser(
    stage: Stage,
    cond: Cond,
    texts: tuple[TextCond, ...],
    inputs: Inputs,
    grid: jax.Array,
    guidance_scale: jax.Array,
    sampling: SamplingConfig,
    weights: tuple[float, ...] | None,
) -> guidance.Denoiser:
    """The stage's network under guidance, thresholding and the mask."""

    def limit(x_hat: jax.Array) -> jax.Array:
        # Infinity is not to be clipped into range: the sampler looks for it.
        return _threshold(sampling)(jnp.where(jnp.isfinite(x_hat), x_hat, jnp.nan))

    options = {
        "rule": _rule(sampling),
        "threshold": limit if sampling.threshold_at in ("before", "both") else None,
    }
    is_off = not sampling.is_guided
    scale = 1 if is_off else _scale(sampling, guidance_scale, grid)
    batch = len(cond.text.mask)
    conds = [cond.replace(text=text) for text in texts]
    if inputs.weak is not None:
        [own] = _prepared(stage, conds)
        [weaks] = _prepared(inputs.weak, conds)
        denoise = guidance.autoguidance(stage.denoise, inputs.weak.denoise, own, weaks, scale, **options)
    else:
        if is_off:
            null = None
        elif inputs.negative is None:
            null = cond.text.drop(jnp.ones((batch,), bool))
        else:
            null = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape[1:])), inputs.negative)
        conds = _prepared(stage, conds if is_off else [*conds, cond.replace(text=null)])
        null = conds[0] if is_off else conds.pop()
        denoise = guidance.classifier_free(
            stage.denoise, conds if weights else conds[0], null, scale, weights=weights, **options
        )
    if sampling.threshold_at in ("after", "both"):
        denoise = guidance.then(denoise, limit)
    if inputs.mask is not None:
        denoise = editing.inpainting(denoise, inputs.image, inputs.mask)
    return denoise


def _prepared(stage: Stage, conds: list[Cond]) -> list[Cond]:
    """`Stage.prepare` of each, in one batch."""
    together = stage.prepare(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *conds))
    parts = jax.tree.map(lambda leaf: jnp.split(leaf, len(conds)), together)
    outer, inner = jax.tree.structure(together), jax.tree.structure([0] * len(conds))
    return jax.tree.transpose(outer, inner, parts)


def _sampler(sampling: SamplingConfig) -> samplers.Sampler:
    options = {"gamma": sampling.ddpm_gamma} | {
        name: getattr(sampling, name)
        for name in ("eta", "order", "churn", "churn_min", "churn_max", "churn_noise")
    }
    return samplers.make(sampling.sampler, **{k: v for k, v in options.items() if v is not None})


def _rule(sampling: SamplingConfig) -> guidance.Rule:
    if sampling.guidance == "cfg++":
        return guidance.plus_plus()
    rule = guidance.linear()
    if sampling.guidance == "apg":
        rule = guidance.projected(
            sampling.apg_parallel or 0.0, sampling.apg_norm, sampling.apg_momentum or 0.0
        )
    return guidance.rescaled(rule, sampling.guidance_rescale) if sampling.guidance_rescale else rule


def _scale(sampling: SamplingConfig, guidance_scale: jax.Array, grid: jax.Array) -> guidance.Scale:
    scale = guidance_scale
    if sampling.guidance_low is not None:
        scale = guidance.oscillating(scale, sampling.guidance_low, sampling.guidance_low_start or 0, grid)
    low, high = sampling.guidance_min_logsnr, sampling.guidance_max_logsnr
    if low is None and high is None:
        return scale
    return guidance.interval(scale, -np.inf if low is None else low, np.inf if high is None else high)


def _threshold(sampling: SamplingConfig) -> Callable[[jax.Array], jax.Array]:
    if sampling.threshold == "none":
        return lambda x_hat: x_hat
    if sampling.threshold == "static":
        return thresholding.static
    options = {name: getattr(sampling, name) for name in ("percentile", "floor", "cap")}
    return partial(thresholding.dynamic, **{k: v for k, v in options.items() if v is not None})
