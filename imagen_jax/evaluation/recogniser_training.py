"""Training of a recogniser on real pictures of icons."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

from imagen_jax import progress, resize
from imagen_jax.checks import Verbatim, require
from imagen_jax.data import sources, transforms
from imagen_jax.data.reader import read_records
from imagen_jax.evaluation.recogniser import COLUMNS, Config, Network, Recogniser, init, style_statistics
from imagen_jax.prepare.icons.captions import are_claims

BATCH_SIZE = 128
LEARNING_RATE = 1e-2  # of Muon, for the kernels between the two ends
ADAM_RATE = 0.3  # of Adam, for all else, as a share of it
WEIGHT_DECAY = 0.1
SMOOTHING = 0.1  # of labels (Szegedy et al. 2016, arXiv:1512.00567)
TEMPERATURE = 0.1  # of the contrast of subjects
SIDE = 64  # of pictures in memory
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Real pictures.

    Attributes:
      images: [N, S, S, 3] uint8.
      subjects, styles: N str each.
    """

    images: np.ndarray
    subjects: list[str]
    styles: list[str]


def read_pictures(directory: Path, split: str) -> Pictures:
    """Return the pictures of a split, each once, though a data set has it with several captions.

    Raises:
      ValueError: there is no such split, it is empty or damaged, or its captions claim nothing of icons.
    """
    source = sources.open_source(directory, split)
    require(len(source) > 0, f"split {split} of {directory}", "hold pictures", 0)
    images, labels, seen = [], [], set()
    for start in progress.over(range(0, len(source), 256), None, "blocks", f"reading {split}"):
        numbers = range(start, min(start + 256, len(source)))
        for number, record in zip(numbers, read_records(source, numbers), strict=True):
            claims = json.loads(record.get("claims", "null"))
            require(are_claims(claims), "--data", "be a data set of icons, with subject and style", Verbatim(directory))
            label = claims["subject"], claims["style"]
            key = *label, hashlib.sha256(record["image"]).digest()
            if key not in seen:
                seen.add(key)
                image = transforms.decode(record["image"], f"Record {number} of {source.name}")
                image = resize.to_size(image, SIDE) if image.shape[:2] != (SIDE, SIDE) else image
                images.append(np.round(image).astype(np.uint8))
                labels.append(label)
    subjects, styles = map(list, zip(*labels, strict=True))
    return Pictures(np.stack(images), subjects, styles)


def accuracy(recogniser: Recogniser, pictures: Pictures) -> dict[str, float]:
    """Return the shares of pictures that are recognised, and their number, by `recogniser.COLUMNS`."""
    answers = recogniser.answers(pictures.images.astype(np.float32) / 127.5 - 1)
    labels = list(zip(answers, pictures.subjects, pictures.styles, strict=True))
    rights = [(a.subjects[0] == subject, subject in a.subjects, a.style == style) for a, subject, style in labels]
    return dict(zip(COLUMNS, [*np.mean(rights, axis=0).tolist(), len(rights)], strict=True))


def augment(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """Return pictures as another style, or a generator, might have drawn them.

    Each is shifted, scaled, blurred and sometimes mirrored; its colors are turned in hue, faded or strengthened; and
    half of them get noise. White stays white but for the noise.

    Args:
      key: of all draws.
      images: [B, H, H, 3] float in [-1, 1].
      size: S, of the result.

    Returns:
      [B, S, S, 3] float in about [-1, 1].
    """
    keys = iter(jax.random.split(key, 12))
    moved = _moved(keys, images, size)
    noise = 2 * jax.random.uniform(next(keys), moved.shape) - 1
    noise *= 0.15 * jnp.maximum(0, jax.random.uniform(next(keys), (len(images), 1, 1, 1)) - 0.5)
    return _recolored(keys, moved) + noise


def augment_slightly(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    """Return pictures as a generator might have drawn them in the same style, as `augment` does.

    The style is in the colors, the sharpness and the margins: each picture is shifted by a pixel at most, half of them
    are mirrored, and there is a little blur, noise and change of strength.
    """
    keys = iter(jax.random.split(key, 6))
    num, side = images.shape[:2]
    uniform = lambda *shape: jax.random.uniform(next(keys), (num, *shape))
    scale = jnp.where(uniform(1) < 0.5, jnp.array([[1.0, -1.0]]), 1.0)  # mirrored
    shift = jnp.floor(3 * uniform(2, 1)) - 1
    x = _resampled(images, size, scale, shift * (side / size), 1 + 0.3 * uniform(1, 1, 1))
    x = 1 - (1 - x) * jnp.exp(0.015 * jax.random.normal(next(keys), (num, 1, 1, 3)))
    return x + 0.07 * uniform(1, 1, 1) * (2 * uniform(*x.shape[1:]) - 1)


def _moved(keys: Iterator[jax.Array], images: jax.Array, size: int) -> jax.Array:
    """Return shifted, scaled, blurred pictures."""
    num, side = images.shape[:2]
    normal = lambda *shape: jax.random.normal(next(keys), (num, *shape))
    uniform = lambda *shape: jax.random.uniform(next(keys), (num, *shape))
    scale = jnp.exp(0.05 + 0.1 * normal(1) + 0.06 * normal(2))
    scale = scale * jnp.where(uniform(1) < 0.1, jnp.array([[1.0, -1.0]]), 1.0)  # mirrored
    blur = 1 + jnp.maximum(0, 2 * uniform(1, 1, 1) - 1.25)
    return _resampled(images, size, scale, 0.04 * side * normal(2, 1), blur)


def _resampled(images: jax.Array, size: int, scale: jax.Array, shift: jax.Array, blur: jax.Array) -> jax.Array:
    """Return pictures [B, S, S, 3] whose rows and columns are weighted means of the old ones.

    Args:
      images: [B, H, H, 3].
      size: S.
      scale: [B, 2], old pixels in a new one along each axis, as a share of H / S.
      shift: [B, 2, 1], in old pixels.
      blur: [B, 1, 1, 1], width of the weights, as a multiple of a pixel, the larger one of old and new.
    """
    side = images.shape[1]
    old, new = (jnp.arange(n)[None, None] + 0.5 - n / 2 for n in (side, size))
    middles = scale[..., None] * new * (side / size) + shift
    middles = jnp.clip(middles, 0.5 - side / 2, side / 2 - 0.5)[..., None]  # beyond the edge: its last pixels
    weights = jnp.maximum(0, 1 - abs(middles - old[None]) / (max(1, side / size) * blur))  # triangles
    weights = weights / weights.sum(-1, keepdims=True)
    rows = jnp.einsum("bij,bjkc->bikc", weights[:, 0], images)
    return jnp.einsum("blk,bikc->bilc", weights[:, 1], rows)


def _recolored(keys: Iterator[jax.Array], images: jax.Array) -> jax.Array:
    """Return pictures of other hue, saturation and strength. White, and the hue of greys, stay as they are."""
    num = len(images)
    normal = lambda *shape: jax.random.normal(next(keys), (num, *shape))
    angle = 0.4 * normal(1, 1)
    saturation = 0.5 + jax.random.uniform(next(keys), (num, 1, 1))
    saturation = jnp.where(saturation < 0.6, 0, saturation)
    # A rotation about the axis of greys (Rodrigues' formula), mixed with the projection to luma.
    mean = jnp.full((1, 3, 3), 1 / 3)
    cross = 3**-0.5 * jnp.array([[[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]])
    rotation = mean + jnp.cos(angle) * (jnp.eye(3)[None] - mean) + jnp.sin(angle) * cross
    grey = jnp.broadcast_to(_LUMA, (1, 3, 3))
    colors = grey + saturation * (rotation - grey)
    gain = jnp.exp(0.15 * normal(1) + 0.07 * normal(3))
    return 1 - gain[:, None, None] * jnp.einsum("bcd,bijd->bijc", colors, 1 - images)


def blend(key: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Return pictures, a quarter of them blended with the next one if both have one label: styles in between."""
    share = jax.random.uniform(key, (len(images), 1, 1, 1), minval=-1.5, maxval=0.5)
    is_same = (labels == jnp.roll(labels, -1))[:, None, None, None]
    return images + jnp.where(is_same, jnp.maximum(share, 0), 0) * (jnp.roll(images, -1, axis=0) - images)


def contrast(features: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the supervised contrastive loss of a batch (Khosla et al. 2020, arXiv:2004.11362, equation 2).

    It draws features of one subject in different styles together, and those of different subjects apart.

    Args:
      features: [B, D], of length 1.
      labels: [B]; rows whose label no other row has are left out.
    """
    itself = jnp.eye(len(labels), dtype=bool)
    same = (labels[:, None] == labels[None]) & ~itself
    similar = jnp.where(itself, -jnp.inf, features @ features.T / TEMPERATURE)
    shares = jax.nn.log_softmax(similar, axis=-1)
    num = same.sum(-1)
    losses = -jnp.where(same, shares, 0).sum(-1) / jnp.maximum(num, 1)
    return losses.sum() / jnp.maximum((num > 0).sum(), 1)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(2, 3))
def _step(config, optimizer, params, state, key, images, subjects, styles):
    """Return (params, state, loss) after one step on uint8 pictures [B, S, S, 3] and labels [B]."""
    draws, slight, dropout = jax.random.split(key, 3)
    images = images.astype(jnp.float32) / 127.5 - 1
    of_styles = augment_slightly(slight, images, config.size)
    images = blend(draws, augment(draws, images, config.size), subjects)

    def loss(params):
        features, *logits = Network(config).apply(params, images, of_styles, dropout)
        smooth = lambda labels, num: optax.smooth_labels(jax.nn.one_hot(labels, num), SMOOTHING)
        losses = [
            optax.softmax_cross_entropy(each, smooth(labels, each.shape[-1])).mean()
            for each, labels in zip(logits, (subjects, styles), strict=True)
        ]
        return losses[0] + losses[1] + contrast(features, subjects)

    value, gradient = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, value


@functools.partial(jax.jit, static_argnums=2)
def _style_means(key: jax.Array, images: jax.Array, size: int) -> jax.Array:
    images = augment_slightly(key, images.astype(jnp.float32) / 127.5 - 1, size)
    return style_statistics(images).mean(0)


def _matrices(params: Any) -> Any:
    """Return for each leaf the axes that Muon sees as a matrix, None for those of Adam: both ends, all for styles."""

    def axes(path: tuple, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if leaf.ndim < 2 or {"conv_0", "style_features", "styles", "subjects"} & set(names):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, params)


def train(pictures: Pictures, *, size: int = 64, epochs: int, seed: int = 0) -> Recogniser:
    """Return a recogniser of the subjects and styles of pictures, trained on each of them once an epoch.

    Args:
      pictures: the more styles of a subject, the better it is recognised in another one.
      size: of the pictures that the network takes, see `Config`.
      epochs: passes over the pictures.
      seed: of parameters, order and augmentation.
    """
    names = [tuple(sorted(set(given))) for given in (pictures.subjects, pictures.styles)]
    config, num = Config(*names, size), len(pictures.images)
    subjects, styles = (
        np.array([known.index(name) for name in given])
        for known, given in zip(names, (pictures.subjects, pictures.styles), strict=True)
    )
    batch_size = min(BATCH_SIZE, num)
    per_epoch = num // batch_size
    steps = per_epoch * epochs
    schedule = optax.warmup_cosine_decay_schedule(0.0, LEARNING_RATE, max(1, steps // 20), steps + 1)
    optimizer = optax.contrib.muon(
        schedule,
        weight_decay=WEIGHT_DECAY,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
        adam_b2=0.99,
        adam_learning_rate=lambda step: ADAM_RATE * schedule(step),
    )
    key, rng = jax.random.key(seed, impl="rbg"), np.random.default_rng(seed)
    params = init(config, key)
    some = rng.permutation(num)[: min(8, per_epoch) * batch_size].reshape(-1, batch_size)
    means = np.mean([_style_means(key, pictures.images[rows], size) for rows in some], axis=0)
    params["params"]["style_means"] = jnp.asarray(means)
    state = optimizer.init(params)
    with progress.Progress(steps, "steps", "training") as shown:
        for step in range(steps):
            if step % per_epoch == 0:
                # All pictures of a subject stand together, for the contrast; subjects and pictures in a new order.
                order = np.lexsort((rng.random(num), rng.permutation(len(config.subjects))[subjects]))
                order = np.roll(order, rng.integers(num))[: per_epoch * batch_size]
                batches = order.reshape(per_epoch, batch_size)
            rows = batches[step % per_epoch]
            batch = pictures.images[rows], subjects[rows], styles[rows]
            params, state, loss = _step(config, optimizer, params, state, jax.random.fold_in(key, step), *batch)
            if step % 50 == 0:
                shown.status(f"loss {loss:.3f}")
            shown.update()
    return Recogniser(config, jax.tree.map(np.asarray, params))
