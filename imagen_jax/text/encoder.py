"""`TextEncoder`: captions to `TextCond`, with any of the encoders in this package."""

import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from imagen_jax import checks, sharding
from imagen_jax.config import TextConfig
from imagen_jax.structs import TextCond
from imagen_jax.text import (
    cleaning,
    deepfloyd_cleaning,
    families,
    model_files,
    pretrained,
    token_batches,
    tokenizer,
    weights,
)
from imagen_jax.text.captions import UnknownTokensWarning, check_captions, shorten, unknown_message
from imagen_jax.text.known import KNOWN, split_revision

# Part of every fingerprint; to be raised when the embeddings of a model change.
_VERSION = 2
_BATCH_SIZE = 64
# dtype -> type of the computation, type of the stored parameters
_DTYPES = {
    "float32": (jnp.float32, jnp.float32),
    "bfloat16": (jnp.bfloat16, jnp.bfloat16),
    "int8": (jnp.bfloat16, jnp.int8),
}
# For a model that states no limit itself.
_DEFAULT_MAX_LENGTH = 256


@functools.partial(jax.jit, static_argnums=0)
def embed(module: nn.Module, params: Any, input_ids: jax.Array, attention_mask: jax.Array):
    """Return the module's output [B, L, D]; compiled once per module and shape."""
    return module.apply(params, input_ids, attention_mask)


class TextEncoder:
    """A frozen language model with its tokenizer; made by `from_pretrained`.

    Attributes:
      name: what `from_pretrained` was given.
      module, params: the Linen module and its variables {"params": ...}; `embed` applies them. The parameters are
        read at their first use, so that an encoder whose embeddings are all cached needs none.
      width: D.
      max_length: the most tokens of a caption, special tokens included; longer ones are cut.
      keeps_padding: whether every caption is padded to `max_length` tokens, all of which are read, as DeepFloyd IF was
        trained: embeddings are then those of all tokens and the mask is True everywhere.
      clean_captions: whether captions are repaired first: by `cleaning.clean`, or with `keeps_padding` as DeepFloyd IF
        does it, by `deepfloyd_cleaning.clean`.
      mesh: the devices that share the work; None: the default one.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        module,
        tokenizer,
        pad_id: int,
        max_length: int,
        clean_captions: bool,
        keeps_padding: bool,
        mesh: Mesh | None,
    ):
        self.name = name
        self.module = module
        self.width = module.config.width
        self.max_length = max_length
        self.clean_captions = clean_captions
        self.keeps_padding = keeps_padding
        self.mesh = mesh
        self._directory = directory
        self._tokenizer = tokenizer
        self._pad_id = pad_id

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        dtype: str = "float32",
        max_length: int | None = None,
        sha256: str | None = None,
        *,
        output: str = "last",
        clean_captions: bool = False,
        mesh: Mesh | None = None,
    ) -> "TextEncoder":
        """Find published weights and their tokenizer, and check them.

        Args:
          name_or_path: a directory in Hugging Face layout, or a name, also as name@revision; see `pretrained.resolve`.
          dtype: "float32" or "bfloat16", of parameters, computation and embeddings; "int8" stores matrices
            as int8, a scale for each output, and computes in bfloat16.
          max_length: the most tokens of a caption; None: what the model says (MiniLM: 256).
          sha256: the hash model.safetensors must have; known names are checked without it.
          output: "last" hidden states; "padded": those of all tokens, see `keeps_padding`; for CLIP also
            "penultimate" ones or the "pooled" one, which comes as a sequence of one token.
          clean_captions: repair captions before they are encoded; see the attribute.
          mesh: of this process's devices, as from `sharding.make_mesh`: captions are split over all of them,
            parameters over its "fsdp" axis.

        Raises:
          ValueError: no such model, damaged files, or an argument out of its range.
        """
        checks.choice("dtype", dtype, _DTYPES)
        clean_captions = checks.boolean("clean_captions", clean_captions)
        if mesh is not None:
            checks.instance("mesh", mesh, Mesh, "a mesh, as from sharding.make_mesh")
        directory = pretrained.resolve(name_or_path, sha256)
        keeps_padding = output == "padded"
        module = families.make_module(directory, *_DTYPES[dtype], "last" if keeps_padding else output)
        place = tokenizer.directory_of(directory)
        tokenizer.files_of(place)
        weights.locate(directory, module)
        tokens = tokenizer.load(place, module.config.vocab_size)
        known = KNOWN.get(split_revision(name_or_path)[0])
        default = known.max_length if known else _DEFAULT_MAX_LENGTH
        max_length = tokenizer.max_length(place, tokens, module.config.max_length, max_length, default)
        pad_id = tokenizer.pad_id(place, tokens)
        options = (max_length, clean_captions, keeps_padding, mesh)
        return cls(str(name_or_path), directory, module, tokens, pad_id, *options)

    @classmethod
    def from_config(cls, config: TextConfig, mesh: Mesh | None = None) -> "TextEncoder":
        """Return the encoder that a stage was, or is to be, trained with: `stage.config.text`.

        A warning says if its weights are not those of `config.model_hash`.

        Raises:
          ValueError: as `from_pretrained` does, or its width is not `config.width`.
        """
        checks.instance("config", config, TextConfig, "a TextConfig")
        encoder = cls.from_pretrained(
            config.encoder,
            config.dtype,
            config.length,
            output=config.output,
            clean_captions=config.clean_captions,
            mesh=mesh,
        )
        if config.width not in (None, encoder.width):
            raise ValueError(
                f"text.width must be {encoder.width}, the width of {config.encoder}; got {config.width}: leave it out, "
                "or name the text encoder of training."
            )
        if config.model_hash is not None:  # otherwise no weights are read yet
            warn_of_other_weights(config, encoder.model_hash)
        return encoder

    @functools.cached_property
    def params(self) -> Any:
        """{"params": ...}, on the devices; ValueError if the weights are not finite."""
        return weights.load_params(self._directory, self.module, self.mesh)

    @functools.cached_property
    def fingerprint(self) -> str:
        """32 hex digits, equal where equal captions get equal embeddings, in any process.

        A hash of the weights, the tokenizer, the config and output, the dtypes, max_length, clean_captions and the
        version of this code; the first call reads weight files that are not in the hub's cache.
        """
        files = tokenizer.files_of(tokenizer.directory_of(self._directory))
        parts = [_VERSION, self.max_length, self.clean_captions, repr(self.module.config)]
        parts += [jnp.dtype(dtype).name for dtype in (self.module.dtype, self.module.param_dtype)]
        parts += [*self._weight_hashes, *map(model_files.named_hash, files)]
        if any(path.name == "spiece.model" for path in files):
            parts.append("sentencepiece")  # earlier versions read it by transformers
        if self.keeps_padding:
            parts.append("padded")
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @functools.cached_property
    def _weight_hashes(self) -> list[str]:
        return [*map(model_files.named_hash, model_files.weight_files(self._directory))]

    @property
    def model_hash(self) -> str:
        """SHA-256 of the weight file, or over those of several; 64 hex digits, as of `TextConfig`."""
        first, *others = self._weight_hashes
        return hashlib.sha256("".join([first, *others]).encode()).hexdigest() if others else first

    @property
    def description(self) -> str:
        """What the fingerprint depends on, in words."""
        stored = jnp.dtype(self.module.param_dtype).name
        output = "padded" if self.keeps_padding else getattr(self.module.config, "output", "last")
        cleaned = ", captions cleaned" if self.clean_captions else ""
        return f"{self.name}, {stored}, {output}, at most {self.max_length} tokens{cleaned}"

    def clean(self, caption: str) -> str:
        """Return the caption as the tokenizer sees it: repaired if `clean_captions`."""
        if not self.clean_captions:
            return caption
        return deepfloyd_cleaning.clean(caption) if self.keeps_padding else cleaning.clean(caption)

    def token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each caption, special tokens included, uncut.

        Raises:
          TypeError: a caption is not a str.
          ValueError: there are no captions, or one is not valid Unicode or becomes ids beyond the vocabulary.
        """
        check_captions(captions)
        ids, size = self._tokenizer.encode([*map(self.clean, captions)]), self.module.config.vocab_size
        for caption, row in zip(captions, ids, strict=True):
            if max(row, default=0) >= size:
                raise ValueError(
                    f"token ids must be below the model's vocabulary of {size}; got {max(row)} for "
                    f"{shorten(caption)}: get the tokenizer's files and the weights from the same model."
                )
        return ids

    def mostly_unknown(self, captions: Sequence[str]) -> list[int]:
        """Return the indices of captions that the tokenizer turns mostly into tokens for unknown text.

        That is more than half of their tokens or characters. Raises as `token_ids` does.
        """
        return self._mostly_unknown(captions, self.token_ids(captions))

    def _mostly_unknown(self, captions: Sequence[str], ids: list[list[int]]) -> list[int]:
        unknown = self._tokenizer.unknown_id
        some = [i for i, row in enumerate(ids) if unknown in row]
        return [i for i in some if self._tokenizer.unknown_share(self.clean(captions[i])) > 0.5]

    def tokenize(self, captions: Sequence[str], length: int | None = None):
        """Return input_ids and attention_mask of captions, NumPy int32 [B, L].

        L is `length`, or the smallest bucket that holds the longest caption. Longer captions are cut before their
        final special token, with one warning.
        """
        ids = self._cut(captions, length)
        length = length or token_batches.bucket(max(map(len, ids)), self.max_length)
        return token_batches.padded(ids, length, self._pad_id)

    def embed(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Return hidden states [B, L, D], or [B, 1, D] if pooled, of input_ids and attention_mask [B, L].

        A pure function. Rows at padding are what the model computes there.

        Raises:
          ValueError: other shapes or types, or ids that are not in the vocabulary (those of a traced array are
            not known, and not checked).
        """
        token_batches.check(input_ids, attention_mask, self.module.config.vocab_size)
        return self._on_devices(embed, input_ids, attention_mask)

    def encode(self, captions: Sequence[str], length: int | None = None) -> TextCond:
        """Return the embeddings and the mask of captions; embeddings at padding are zero unless `keeps_padding`.

        Args:
          captions: at least one str; long lists are computed in batches of similar length.
          length: L, at most `max_length`; None: the smallest bucket that holds the longest caption, or 1 if pooled, or
            `max_length` if `keeps_padding`.

        Raises:
          TypeError: a caption is not a str.
          ValueError: no captions, or a length out of its range.
        """
        ids = self._cut(captions, length)
        total = length or self._whole_length(max(map(len, ids)))
        if len(ids) <= _BATCH_SIZE:
            embeddings, mask = self._embed_ids(ids, total)
            text = TextCond(embeddings[: len(ids)], jnp.asarray(mask[: len(ids)]))
        else:
            rows = 1 if self._is_pooled else total
            out = np.zeros((len(ids), rows, self.width), self.module.dtype)
            mask = np.zeros((len(ids), rows), bool)
            for i, embedding in self._embed_sorted(ids, _BATCH_SIZE):
                out[i, : len(embedding)] = embedding
                mask[i, : len(embedding)] = True
            text = TextCond(jnp.asarray(out), jnp.asarray(mask))
        return _lengthened(text, length) if self._is_pooled and length else text

    def encode_ragged(
        self, captions: Sequence[str], batch_size: int = _BATCH_SIZE
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index of the caption, its embeddings [its tokens, D]) in order of length.

        For many captions: no batch is padded to the longest caption of all, and at most two batches are held. Raises as
        `encode` does.
        """
        batch_size = checks.whole("batch_size", batch_size, 1)
        return self._embed_sorted(self._cut(captions, None), batch_size)

    def _embed_sorted(self, ids: list[list[int]], batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
        embed = lambda rows, length: self._embed_ids(rows, length)[0]
        limit, whole = self.max_length, self.keeps_padding
        return token_batches.embed_sorted(embed, ids, batch_size, limit, keeps_padding=whole)

    def _whole_length(self, longest: int) -> int:
        """Return the length L that captions of at most `longest` tokens are padded to."""
        return self.max_length if self.keeps_padding else token_batches.bucket(longest, self.max_length)

    def _embed_ids(self, ids: list[list[int]], length: int) -> tuple[jax.Array, np.ndarray]:
        """Return embeddings [B, L, D], zero at padding, and mask [B, L] bool; B is at least len(ids).

        L is `length`, or 1 if pooled.
        """
        # Powers of two in B, buckets in L: few shapes, so few compilations.
        surplus = (1 << (len(ids) - 1).bit_length()) - len(ids)
        input_ids, mask = token_batches.padded(ids + [ids[0]] * surplus, length, self._pad_id)
        if self.keeps_padding:
            return self._on_devices(embed, input_ids, mask), np.ones(mask.shape, bool)
        embeddings = self._on_devices(_embed_zeroed, input_ids, mask)
        return embeddings, mask[:, : embeddings.shape[1]].astype(bool)

    def _on_devices(self, function: Callable, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Return function(module, params, ids, mask), computed with the rows split over the mesh, if there is one."""
        if self.mesh is None:
            return function(self.module, self.params, input_ids, attention_mask)
        num = len(input_ids)
        size = num + -num % sharding.num_batch_shards(self.mesh)
        ids_and_mask = jax.tree.map(jnp.asarray, (input_ids, attention_mask))
        return function(self.module, self.params, *sharding.pad_batch(ids_and_mask, size, self.mesh))[:num]

    @property
    def _is_pooled(self) -> bool:
        return getattr(self.module.config, "output", "last") == "pooled"

    def _cut(self, captions: Sequence[str], length: int | None) -> list[list[int]]:
        """Return the token ids of each caption, at most `length` or `max_length`.

        One warning says which captions are cut, another which are mostly unknown.
        """
        limit = self.max_length if length is None else length
        tokenizer.check_length(limit, self._tokenizer, self.max_length)
        ids = self.token_ids(captions)
        unknown = self._mostly_unknown(captions, ids)
        if unknown:
            message = unknown_message(self.name, [captions[i] for i in unknown], len(ids))
            warnings.warn(message, UnknownTokensWarning, stacklevel=3)
        too_long = [i for i, row in enumerate(ids) if len(row) > limit]
        if too_long:
            first = too_long[0]
            others = f", and {len(too_long) - 1} more captions" if len(too_long) > 1 else ""
            warnings.warn(
                f"caption {first} ({shorten(captions[first])}) has {len(ids[first])} tokens and "
                f"is cut to the limit of {limit}{others}; shorten it or raise the limit.",
                stacklevel=3,
            )
        for i in too_long:
            ids[i] = self._tokenizer.cut(self.clean(captions[i]), limit)
        return ids


def warn_of_other_weights(config: TextConfig, found: str) -> None:
    """Warn if `found`, the hash of an encoder's weights, is not that of training."""
    if config.model_hash not in (None, found):
        warnings.warn(
            f"{config.encoder} must have the weights of training, of SHA-256 {config.model_hash:.12}...; got those of "
            f"{found:.12}...: name the text encoder of training, unless these are the same in another file format.",
            stacklevel=3,
        )


@functools.partial(jax.jit, static_argnums=0)
def _embed_zeroed(module: nn.Module, params: Any, input_ids: jax.Array, mask: jax.Array):
    embeddings = embed(module, params, input_ids, mask)
    return jnp.where(mask[:, : embeddings.shape[1], None] != 0, embeddings, 0)


def _lengthened(text: TextCond, length: int) -> TextCond:
    missing = length - text.mask.shape[1]
    return TextCond(
        jnp.pad(text.embeddings, ((0, 0), (0, missing), (0, 0))), jnp.pad(text.mask, ((0, 0), (0, missing)))
    )
