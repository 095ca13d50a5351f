"""A network that names the subject and the style of a picture of icons, and its files.

A directory holds a recogniser once recogniser.json is there:

    recogniser.safetensors  parameters; see `stage_dir.weight_file`
    recogniser.json         subjects, styles, size, version, the SHA-256 of the parameters, accuracy on real pictures
"""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import checks, resize
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import read_json
from imagen_jax.stage_dir import weight_file
from imagen_jax.storage import files, input_files

WEIGHT_FILE, CONFIG_FILE = "recogniser.safetensors", "recogniser.json"
FILES = (WEIGHT_FILE, CONFIG_FILE)
STRIDE = 16  # the sides of pictures are multiples of it
MAX_SIZE = 256
_WIDTHS = (16, 48, 96, 160)  # each convolution halves the sides
_FEATURES = 256
_STYLE_FEATURES, _STYLE_SPREAD = 128, 0.05
_BINS = 12  # of each color channel: colors of a palette fall into different ones
_STEP_BINS = 12  # of differences between neighbors, on a log scale
_SCALE = 16.0  # of cosines, as logits
_VERSION = 2  # of the network; 1 had convolutions for styles
_BATCH_SIZE = 64
_MAX_BYTES = 2**26
COLUMNS = ("subject", "subject in top 5", "style", "pictures")  # of the table of accuracy
_FIX = "train one with imagen-jax recogniser"


@dataclasses.dataclass(frozen=True)
class Config:
    """What a recogniser tells apart.

    Attributes:
      subjects, styles: names, in the order of the outputs; subjects are code points, as claims have them.
      size: side in pixels of the pictures that the network takes, a multiple of 16.
    """

    subjects: tuple[str, ...]
    styles: tuple[str, ...]
    size: int = 64

    def __post_init__(self):
        for name in ("subjects", "styles"):
            value = getattr(self, name)
            is_right = isinstance(value, tuple) and value and all(isinstance(each, str) for each in value)
            require(is_right and len(set(value)) == len(value), name, "be different names, at least one", value)
        checks.whole("size", self.size, STRIDE, MAX_SIZE)
        require(self.size % STRIDE == 0, "size", f"be a multiple of {STRIDE}", self.size)


class Network(nn.Module):
    """Pictures [B, S, S, 3] in [-1, 1] to unit features [B, D], logits of subjects [B, N] and of styles [B, M].

    Subjects are told apart by the cosine of features and one vector for each (Gidaris and Komodakis 2018,
    arXiv:1804.09458), since training shows a subject a few times only. They are read off a picture of 3/4 of the size,
    as they must not depend on small details. Styles are told apart by `style_statistics`, of all pixels.
    """

    config: Config

    @nn.compact
    def __call__(
        self, x: jax.Array, of_styles: jax.Array | None = None, dropout: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """`of_styles` are pictures for the styles, x if None; `dropout` is a key in training."""
        drop = lambda value, number, rate: nn.Dropout(rate, name=f"dropout_{number}")(
            value, dropout is None, rng=None if dropout is None else jax.random.fold_in(dropout, number)
        )
        styles = style_statistics(x if of_styles is None else of_styles)
        means = self.param("style_means", nn.initializers.zeros, styles.shape[1:])  # of training pictures, not learned
        styles = drop((styles - jax.lax.stop_gradient(means)[None]) / _STYLE_SPREAD, 0, 0.3)
        styles = drop(nn.relu(nn.Dense(_STYLE_FEATURES, name="style_features")(styles)), 1, 0.3)
        x = 1 - resize.area(x, 3 * self.config.size // 4)  # white, the usual background, is 0 as the padding is
        for i, width in enumerate(_WIDTHS):
            x = nn.Conv(width, (3, 3), 2, use_bias=False, name=f"conv_{i}")(x)
            x = nn.relu(nn.GroupNorm(8, name=f"norm_{i}")(x))
        x = drop(x.reshape(len(x), -1), 2, 0.2)
        features = _unit(nn.Dense(_FEATURES, use_bias=False, name="features")(x), -1)
        shape = (_FEATURES, len(self.config.subjects))
        vectors = self.param("subjects", nn.initializers.normal(_FEATURES**-0.5), shape)
        return features, _SCALE * features @ _unit(vectors, 0), nn.Dense(len(self.config.styles), name="styles")(styles)


def style_statistics(x: jax.Array) -> jax.Array:
    """Return the statistics of pictures that differ between styles: their colors, steps and extent.

    A style draws all subjects in the colors of one palette, which a histogram shows; a network of convolutions finds it
    far more slowly. Gradients and outlines show in the sizes of the steps between neighboring pixels, over the picture
    and over all that is not white; the margins in the darkest pixel of each row and column.

    Args:
      x: [B, S, S, 3] in about [-1, 1].

    Returns:
      [B, F]: square roots of shares. A value between two bins counts in both.
    """
    x = jnp.clip(x, -1, 1)
    corner = x[:, :-1, :-1]
    steps = jnp.maximum(abs(x[:, 1:, :-1] - corner), abs(x[:, :-1, 1:] - corner)).max(-1)
    steps = _in_bins(jnp.log2(steps + 2.0**-8), -8, 1, _STEP_BINS)
    drawn = (corner.min(-1) < 0.9)[..., None]
    inside = (steps * drawn).sum((1, 2)) / (1 + drawn.sum((1, 2)))
    dark = jnp.minimum(1, 1 - x.min(-1))
    return jnp.sqrt(jnp.concatenate([_colors(x), steps.mean((1, 2)), inside, dark.max(1), dark.max(2)], -1))


def _colors(x: jax.Array) -> jax.Array:
    """Return the histograms [B, bins^3] of the colors of pictures; a color counts in the eight bins around it."""
    place = (x.reshape(len(x), -1, 3) + 1) * ((_BINS - 1) / 2)
    low = jnp.minimum(jnp.floor(place), _BINS - 2)
    weights = jnp.stack([1 - (place - low), place - low])
    index = lambda red, green, blue: (red * _BINS + green) * _BINS + blue
    first = index(*jnp.moveaxis(low.astype(int), -1, 0)) + _BINS**3 * jnp.arange(len(x))[:, None]
    found = jnp.zeros(len(x) * _BINS**3)
    for corner in itertools.product((0, 1), repeat=3):
        red, green, blue = (weights[side, ..., i] for i, side in enumerate(corner))
        found = found.at[first + index(*corner)].add(red * green * blue)
    return found.reshape(len(x), -1) / place.shape[1]


def _in_bins(x: jax.Array, low: float, high: float, num: int) -> jax.Array:
    """Return the shares [..., num] of values in [low, high] in the two bins next to each."""
    place = (x - low) * ((num - 1) / (high - low))
    return jnp.maximum(0, 1 - abs(place[..., None] - jnp.arange(num).reshape([1] * x.ndim + [num])))


def _unit(x: jax.Array, axis: int) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis, keepdims=True) + 1e-8)


@functools.partial(jax.jit, static_argnums=0)
def _logits(config: Config, params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return Network(config).apply(params, images)[1:]


class Answer(NamedTuple):
    """What a picture was taken for: the five likeliest subjects, best first, and the style."""

    subjects: tuple[str, ...]
    style: str


@dataclasses.dataclass(frozen=True)
class Recogniser:
    """A trained recogniser.

    Attributes:
      config: what it tells apart.
      params: of its `Network`.
      accuracy: on real pictures, by split: the shares of right answers by name, and "pictures", their number.
    """

    config: Config
    params: Any
    accuracy: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)

    def answers(self, images: np.ndarray) -> list[Answer]:
        """Return what each picture is taken for.

        Args:
          images: [N, H, W, 3] float in [-1, 1], of any size; resized by `resize.to_size`.
        """
        subjects, styles = self.logits(images)
        best = np.argsort(-subjects, axis=-1, kind="stable")[:, :5]
        names = self.config
        return [
            Answer(tuple(names.subjects[i] for i in row), names.styles[style])
            for row, style in zip(best, styles.argmax(-1), strict=True)
        ]

    def logits(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the logits of subjects [N, S] and of styles [N, T] of pictures, as for `answers`."""
        found = []
        for start in range(0, len(images), _BATCH_SIZE):
            batch = resize.to_size(np.clip(images[start : start + _BATCH_SIZE], -1, 1), self.config.size)
            filled = np.zeros((_BATCH_SIZE, *batch.shape[1:]), np.float32)  # one size: one compilation
            filled[: len(batch)] = batch
            found.append([np.asarray(each)[: len(batch)] for each in _logits(self.config, self.params, filled)])
        subjects, styles = zip(*found, strict=True)
        return np.concatenate(subjects), np.concatenate(styles)

    def save(self, directory: Path) -> None:
        """Write the files of a recogniser; recogniser.json comes last."""
        content = weight_file.encode(self.params, "float32")
        config = dataclasses.asdict(self.config)
        directory.mkdir(parents=True, exist_ok=True)
        files.write(directory / WEIGHT_FILE, content)
        about = {"version": _VERSION, "accuracy": self.accuracy, "sha256": hashlib.sha256(content).hexdigest()}
        files.write_json(directory / CONFIG_FILE, config | about, indent=1)


def load(directory: Path, option: str) -> Recogniser:
    """Return the recogniser in a directory.

    Args:
      directory: as `Recogniser.save` wrote it.
      option: how the user named it, such as "--recogniser".

    Raises:
      ValueError: there is none, or its files are damaged or do not belong together.
    """
    file = directory / CONFIG_FILE
    got = Verbatim(f"{directory}, which has no {CONFIG_FILE}")
    require(file.is_file(), option, "be the directory of a recogniser", got, _FIX)
    data = read_json(file)
    try:
        config, sha256, accuracy = _parsed(data)
    except ValueError as error:
        raise checks.within(file, error) from error
    content = input_files.read_given(option, directory / WEIGHT_FILE, _MAX_BYTES, "a recogniser", _FIX)
    is_whole = hashlib.sha256(content).hexdigest() == sha256
    got = Verbatim("another file or a damaged one")
    require(is_whole, str(directory / WEIGHT_FILE), f"be what {CONFIG_FILE} was written with", got, _FIX)
    shapes = jax.eval_shape(lambda: init(config, jax.random.key(0)))
    params = weight_file.decode(content, shapes, str(directory / WEIGHT_FILE))
    return Recogniser(config, jax.device_put(params), accuracy)  # once, not with every batch


def _parsed(data: Any) -> tuple[Config, str, dict[str, Any]]:
    require(isinstance(data, dict), "the content", "be an object", data)
    names = ("subjects", "styles", "size", "version", "accuracy", "sha256")
    missing = [name for name in names if name not in data]
    require(not missing, "the content", f"have {', '.join(names)}", Verbatim(f"none of {', '.join(missing)}"), _FIX)
    require(data["version"] == _VERSION, "version", f"be {_VERSION}", data["version"], _FIX)
    subjects, styles = (tuple(data[n]) if isinstance(data[n], list) else data[n] for n in ("subjects", "styles"))
    accuracy = data["accuracy"]
    is_table = isinstance(accuracy, dict) and all(isinstance(row, dict) for row in accuracy.values())
    is_table = is_table and all(checks.is_finite(row.get(name)) for row in accuracy.values() for name in COLUMNS)
    require(is_table, "accuracy", f"have the numbers {', '.join(COLUMNS)} of each split", accuracy, _FIX)
    return Config(subjects, styles, data["size"]), checks.text("sha256", data["sha256"]), accuracy


def accuracy_table(accuracy: Mapping[str, Mapping[str, float]]) -> str:
    """Return the accuracy of a recogniser as a Markdown table, in percent."""
    rows = [f"| split | {' | '.join(COLUMNS)} |", f"|---|{'---:|' * len(COLUMNS)}"]
    for split, row in accuracy.items():
        *shares, num = (row[name] for name in COLUMNS)
        rows.append(f"| {split} | {' | '.join(f'{100 * share:.1f}' for share in shares)} | {num} |")
    return "\n".join(rows)


def init(config: Config, key: jax.Array) -> Any:
    """Return new parameters of a network."""
    return Network(config).init(key, jnp.zeros((1, config.size, config.size, 3)))
