"""CLIP score, the agreement of pictures with their captions (Hessel et al. 2021, arXiv:2104.08718).

`ClipScorer` takes any CLIP (Radford et al. 2021, arXiv:2103.00020) in Hugging Face layout: the text half is a pooled
`TextEncoder`, the image half a vision transformer of the same layers. Scores of different models, such as OpenAI's and
OpenCLIP's, cannot be compared.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import resize
from imagen_jax.evaluation import frechet
from imagen_jax.evaluation.metrics import METRICS, Metric, Models, Samples
from imagen_jax.text import clip, families, layers, model_files, pretrained, weights
from imagen_jax.text.encoder import TextEncoder

# Of the pictures, in [0, 1], that OpenAI's models were trained on; used without a preprocessor_config.json.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
_BATCH_SIZE = 64


@METRICS.register("clip")
class ClipScorer(Metric):
    """A frozen CLIP with both halves; made by `from_pretrained`. As a metric, the mean of `score`.

    Attributes:
      encoder: the text half and its tokenizer.
      module, params: the image half and both projections, {"params": ...}.
      mean, std: [3] float32, of the pictures the model was trained on, in [0, 1].
    """

    needs = ("clip",)

    def __init__(
        self, encoder: TextEncoder, module: "ImageHalf", params: Any, mean: np.ndarray, std: np.ndarray
    ):
        self.encoder = encoder
        self.module = module
        self.params = params
        self.mean = mean
        self.std = std

    @classmethod
    def build(cls, models: Models) -> "ClipScorer":
        return cls.from_pretrained(models.clip)

    def values(self, samples: Samples) -> np.ndarray:
        return self.score(samples.images, samples.captions)

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path) -> "ClipScorer":
        """Find and load published weights, in float32.

        Args:
          name_or_path: a directory in Hugging Face layout, or a name such as
            "openai/clip-vit-large-patch14"; see `pretrained.resolve`.

        Raises:
          ValueError: no such model, one without an image half, or damaged files.
        """
        directory = pretrained.resolve(name_or_path, kind="CLIP", example="openai/clip-vit-large-patch14")
        config = _read_config(directory)
        mean, std = _normalization(directory)
        encoder = TextEncoder.from_pretrained(directory, output="pooled")
        module = ImageHalf(config)
        return cls(encoder, module, weights.load_params(directory, module, family=_FAMILY), mean, std)

    def score(self, images: Any, captions: Sequence[str]) -> np.ndarray:
        """Return the cosine similarity of each picture and its caption, [N] float32 in [-1, 1].

        The usual CLIP score is 100 times that. Captions are cut to the model's limit, 77 tokens, with a warning.
        Pictures are resized by `imagen_jax.resize` (area, bilinear), while the model's own preprocessing is bicubic;
        scores differ slightly.

        Args:
          images: [N, H, W, 3] float in [-1, 1], of any size; the short side is resized to the model's size, and the
            center is cropped.
          captions: N str.

        Raises:
          ValueError: other shapes, types or ranges, or another number of captions.
          TypeError: captions that are not str.
        """
        images = frechet.check_pictures(images)
        if images.shape[-1] != 3:
            raise ValueError(f"pictures must be [N, H, W, 3]; got shape {images.shape}: convert them to RGB.")
        if not isinstance(captions, str) and len(images) != len(captions):
            raise ValueError(
                f"each picture must have one caption; got {len(images)} pictures and {len(captions)} captions: "
                "pass equal numbers."
            )
        texts = self.encoder.encode(captions).embeddings[:, 0]
        # All batches have one size, a power of two: one compilation.
        size = min(_BATCH_SIZE, 1 << (len(images) - 1).bit_length())
        batches = []
        for start in range(0, len(images), size):
            rows = np.minimum(np.arange(start, start + size), len(images) - 1)
            batches.append(_cosine(self.module, self.params, self._pixels(images[rows]), texts[rows]))
        return np.concatenate(batches)[: len(images)]

    def _pixels(self, images: np.ndarray) -> np.ndarray:
        """Return pictures [B, H, W, 3] in [-1, 1] as the image half takes them, [B, S, S, 3]."""
        size = self.module.config.image_size
        height, width = images.shape[1:3]
        short = min(height, width)
        fit = resize.area if short > size else resize.bilinear
        fitted = fit(np.clip(images, -1, 1), (height * size // short, width * size // short))
        top, left = ((side - size) // 2 for side in fitted.shape[1:3])
        return ((fitted[:, top : top + size, left : left + size] + 1) / 2 - self.mean) / self.std


@functools.partial(jax.jit, static_argnums=0)
def _cosine(module: nn.Module, params: Any, pixels: jax.Array, texts: jax.Array) -> jax.Array:
    image, text = module.apply(params, pixels, texts)
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    return (unit(image) * unit(text)).sum(-1)


# ---- network ----


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """Sizes of the image half, with the names and defaults of the vision_config in a Hugging Face config.json.

    `projection_dim` is that of the whole model, `text_width` the width of the text half.
    """

    text_width: int
    projection_dim: int = 512
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 32
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    def __post_init__(self):
        clip.check_layer(self)
        if self.image_size % self.patch_size or self.num_channels != 3:
            raise ValueError(
                "CLIP config.json: image_size must be a multiple of patch_size and num_channels 3; got "
                f"{self.image_size}, {self.patch_size} and {self.num_channels}: choose another CLIP."
            )

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "ImageConfig":
        """Return the config that a Hugging Face config.json of the whole model, parsed into a dict, states.

        Raises:
          ValueError: a setting of the model is not supported.
        """
        found = dict(layers.section("CLIP", config, "vision_config"))
        found["projection_dim"] = config.get("projection_dim", cls.projection_dim)
        found["text_width"] = clip.ClipConfig.from_hf(config).width
        return cls(**layers.sizes(cls, "CLIP", found))

    @property
    def grid(self) -> int:
        """The number of patches along each side of a picture."""
        return self.image_size // self.patch_size

    @property
    def axes(self) -> dict[str, int]:
        """Sizes that are axes of its tensors, or divide them."""
        names = ("text_width", "projection_dim", "hidden_size", "intermediate_size", "num_attention_heads")
        patches = {"patch_size": self.patch_size, "(image_size / patch_size)^2": self.grid**2}
        return {name: getattr(self, name) for name in names} | patches


class ImageHalf(nn.Module):
    """Network from pictures, and from the text half's pooled output, to vectors in the joint space."""

    config: ImageConfig
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, pixels: jax.Array, texts: jax.Array) -> tuple[jax.Array, jax.Array]:
        """pixels [B, S, S, 3], normalised, and texts [B, D] -> two of [B, projection_dim]."""
        images = _Tower(self.config, self.dtype, self.param_dtype, name="vision")(pixels)
        project = lambda x, name: layers.dense(self, self.config.projection_dim, name, use_bias=False)(x)
        return project(images, "visual_projection"), project(texts, "text_projection")


class _Tower(nn.Module):
    """Vision transformer [B, S, S, 3] -> [B, width], the output at the class token."""

    config: ImageConfig
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, pixels: jax.Array) -> jax.Array:
        config, batch, width = self.config, len(pixels), self.config.hidden_size
        grid, patch, length = config.grid, config.patch_size, config.grid**2 + 1
        patches = pixels.astype(self.dtype).reshape(batch, grid, patch, grid, patch, 3)
        normal = nn.initializers.normal(0.02)
        # Columns before rows: loading reverses the axes of torch's [width, 3, rows, columns].
        kernel = self.param("patch", normal, (patch, patch, 3, width), self.param_dtype)
        first = self.param("class", normal, (width,), self.param_dtype)
        x = jnp.einsum("bgrhcd,crdw->bghw", patches, kernel, precision=layers.precision(self.dtype))
        x = x.reshape(batch, grid**2, width)
        x = jnp.concatenate([jnp.broadcast_to(first, (batch, 1, width)).astype(x.dtype), x], axis=1)
        x = x + layers.embedding(self, length, width, "position")(jnp.arange(length))[None]
        x = layers.layer_norm(self, config.layer_norm_eps, "norm_before")(x.reshape(-1, width))  # [B L, D]
        bias = jnp.zeros((batch, 1, 1, length))  # without masking
        for i in range(config.num_hidden_layers):
            x = clip.Layer(config, self.dtype, self.param_dtype, name=f"layer_{i}")(x, bias)
        return layers.layer_norm(self, config.layer_norm_eps, "norm")(x.reshape(batch, length, width)[:, 0])


# ---- weights ----


def _tensor_table(config: ImageConfig) -> Iterator[layers.Row]:
    """Yield the rows of the image half and the projections, as `clip.tensor_table` yields those of the text half."""

    def vision() -> Iterator[layers.Row]:
        embeddings = "vision_model.embeddings"
        yield f"{embeddings}.class_embedding", ("class",), False
        yield f"{embeddings}.patch_embedding.weight", ("patch",), True
        yield f"{embeddings}.position_embedding.weight", ("position", "embedding"), False
        yield from layers.norm_rows("vision_model.pre_layrnorm", ("norm_before",))  # as spelled in checkpoints
        yield from clip.layer_rows("vision_model", config.num_hidden_layers)
        yield from layers.norm_rows("vision_model.post_layernorm", ("norm",))

    for name, path, transposed in vision():
        yield name, ("vision", *path), transposed
    for name in ("visual_projection", "text_projection"):
        yield f"{name}.weight", (name, "kernel"), True


def _canonical_name(name: str) -> str | None:
    is_other = name.startswith("text_model.") or name in (
        "logit_scale",
        "vision_model.embeddings.position_ids",
    )
    return None if is_other else name


def _inputs(config: ImageConfig) -> tuple[jax.ShapeDtypeStruct, ...]:
    shapes = (1, config.image_size, config.image_size, 3), (1, config.text_width)
    return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)


_FAMILY = families.Family(ImageConfig.from_hf, ImageHalf, _tensor_table, _canonical_name, _inputs)


def _read_config(directory: Path) -> ImageConfig:
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(
            f"a CLIP's directory must hold config.json; got {directory}, which has none: pass a directory in "
            "Hugging Face layout."
        )
    config = model_files.read_json(path)
    if config.get("model_type") != "clip":
        raise ValueError(
            f"{path}: model_type must be 'clip', of an image half and a text half; got "
            f"{config.get('model_type')!r}: choose a whole CLIP."
        )
    return families.parse_config(_FAMILY, directory, config)


def _normalization(directory: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and std, [3] each, of the model's preprocessor_config.json, or OpenAI's without such a file."""
    path = directory / "preprocessor_config.json"
    found = model_files.read_json(path) if path.is_file() else {}
    values = {}
    for key, default in (("image_mean", MEAN), ("image_std", STD)):
        value = values[key] = found.get(key, default)
        is_valid = isinstance(value, list | tuple) and len(value) == 3
        is_valid = is_valid and all(type(x) in (int, float) and np.isfinite(x) for x in value)
        if not is_valid or (key == "image_std" and min(value) <= 0):
            raise ValueError(f"{path}: {key} must be three numbers; got {value!r:.80}: get a complete copy.")
    return np.array(values["image_mean"], np.float32), np.array(values["image_std"], np.float32)
