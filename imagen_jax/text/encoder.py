"""`TextEncoder`: captions to `TextCond`, with any of the encoders in this package."""

import functools
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from imagen_jax.text import cleaning, families, model_files, pretrained, tokenizer, weights
from imagen_jax.text.known import KNOWN, split_revision

# Part of every fingerprint: raise it when the same model begins to give other embeddings.
_VERSION = 2
_BATCH_SIZE = 64
# dtype -> what it computes in, what its parameters are stored in
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


class UnknownTokensWarning(UserWarning):
    """Captions that the tokenizer turns mostly into tokens for unknown text."""


class TextEncoder:
    """A frozen language model with its tokenizer; made by `from_pretrained`.

    Attributes:
      name: what `from_pretrained` was given.
      module, params: the Linen module and its variables {"params": ...}; `embed` applies them. Parameters
        are read when they are first asked for, so an encoder whose embeddings are all cached costs nothing.
      width: D.
      max_length: the most tokens of a caption, special tokens included; longer ones are cut.
      clean_captions: whether captions are repaired first (`cleaning.clean`).
      mesh: the devices that share the work; None: the default one.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        module,
        tokenizer,
        max_length: int,
        clean_captions: bool,
        mesh: Mesh | None,
    ):
        self.name = name
        self.module = module
        self.width = module.config.width
        self.max_length = max_length
        self.clean_captions = clean_captions
        self.mesh = mesh
        self._directory = directory
        self._tokenizer = tokenizer
        self._pad_id = _pad_id(directory, tokenizer)

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
          output: "last" hidden states; for CLIP also "penultimate" ones or the "pooled" one, which comes as
            a sequence of one token.
          clean_captions: repair captions before they are encoded; see `cleaning.clean`.
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
        module = families.make_module(directory, *_DTYPES[dtype], output)
        tokenizer.files_of(directory)
        weights.locate(directory, module)
        tokens = tokenizer.load(directory, module.config.vocab_size)
        known = KNOWN.get(split_revision(name_or_path)[0])
        default = known.max_length if known else _DEFAULT_MAX_LENGTH
        max_length = _max_length(directory, tokens, module.config, max_length, default)
        return cls(str(name_or_path), directory, module, tokens, max_length, clean_captions, mesh)

    @classmethod
    def from_config(cls, config: TextConfig, mesh: Mesh | None = None) -> "TextEncoder":
        """Return the encoder that a stage was, or is to be, trained with: `stage.config.text`.

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
                f"text.width must be {encoder.width}, the width of {config.encoder}; got {config.width}."
            )
        return encoder

    @functools.cached_property
    def params(self) -> Any:
        """{"params": ...}, on the devices; ValueError if the weights are not finite."""
        return weights.load_params(self._directory, self.module, self.mesh)

    @functools.cached_property
    def fingerprint(self) -> str:
        """32 hex digits, equal where equal captions get equal embeddings, in any process.

        Made of the weights, the tokenizer, the config and output, the dtypes, max_length, clean_captions
        and this code's version; the first call reads weight files that are not in the hub's cache.
        """
        files = [
            *model_files.weight_files(self._directory),
            *tokenizer.files_of(self._directory),
        ]
        parts = [_VERSION, self.max_length, self.clean_captions, repr(self.module.config)]
        parts += [jnp.dtype(dtype).name for dtype in (self.module.dtype, self.module.param_dtype)]
        parts += [model_files.named_hash(path) for path in files]
        if any(path.name == "spiece.model" for path in files):
            parts.append("sentencepiece")  # earlier versions read it by transformers
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    @property
    def description(self) -> str:
        """What is part of the fingerprint, for people."""
        stored = jnp.dtype(self.module.param_dtype).name
        output = getattr(self.module.config, "output", "last")
        cleaned = ", captions cleaned" if self.clean_captions else ""
        return f"{self.name}, {stored}, {output}, at most {self.max_length} tokens{cleaned}"

    def clean(self, caption: str) -> str:
        """Return the caption as the tokenizer sees it: repaired if `clean_captions`."""
        return cleaning.clean(caption) if self.clean_captions else caption

    def token_ids(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each caption, special tokens included, uncut.

        Raises:
          TypeError: a caption is not a str.
          ValueError: there are no captions, or one is not valid Unicode or becomes ids beyond the vocabulary.
        """
        _check_captions(captions)
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

        L is `length`, or the smallest bucket that holds the longest caption. A caption that is
        longer is cut, its final special token kept, and one warning says so.
        """
        ids = self._cut(captions, length)
        return self._pad(ids, length or _bucket(max(map(len, ids)), self.max_length))

    def embed(self, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """Return hidden states [B, L, D], or [B, 1, D] if pooled, of input_ids and attention_mask [B, L].

        Pure. Rows at padding are whatever the model computes there.

        Raises:
          ValueError: other shapes or types, or ids that are not in the vocabulary (those of a traced array are
            not known, and not checked).
        """
        _check_ids(input_ids, attention_mask, self.module.config.vocab_size)
        return self._on_devices(embed, input_ids, attention_mask)

    def encode(self, captions: Sequence[str], length: int | None = None) -> TextCond:
        """Return the embeddings and the mask of captions; embeddings at padding are zero.

        Args:
          captions: at least one str; long lists are computed in batches of similar length.
          length: L, at most `max_length`; None: the smallest bucket that holds the longest
            caption, or 1 if pooled. Give it where L must not depend on the captions.

        Raises:
          TypeError: a caption is not a str.
          ValueError: no captions, or a length out of its range.
        """
        ids = self._cut(captions, length)
        total = length or _bucket(max(map(len, ids)), self.max_length)
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

        The way to encode many captions: nothing is padded to the longest of all, and no more than
        one batch is held. Raises as `encode` does.
        """
        batch_size = checks.whole("batch_size", batch_size, 1)
        return self._embed_sorted(self._cut(captions, None), batch_size)

    def _embed_sorted(self, ids: list[list[int]], batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]

        def start(rows: list[int]) -> tuple[list[int], jax.Array]:
            length = _bucket(len(ids[rows[-1]]), self.max_length)
            return rows, self._embed_ids([ids[i] for i in rows], length)[0]

        # The devices are at work on the next batch while this one is fetched and used.
        upcoming = map(start, batches)
        following = next(upcoming, None)
        while following is not None:
            (rows, embeddings), following = following, next(upcoming, None)
            for i, embedding in zip(rows, np.asarray(embeddings)[: len(rows)], strict=True):
                yield i, embedding[: len(ids[i])]

    def _embed_ids(self, ids: list[list[int]], length: int) -> tuple[jax.Array, np.ndarray]:
        """Return embeddings [B, L, D], zero at padding, and mask [B, L] bool; B is at least len(ids).

        L is `length`, or 1 if pooled.
        """
        # Powers of two in B as buckets in L: few shapes, so few compilations.
        surplus = (1 << (len(ids) - 1).bit_length()) - len(ids)
        input_ids, mask = self._pad(ids + [ids[0]] * surplus, length)
        embeddings = self._on_devices(_embed_zeroed, input_ids, mask)
        return embeddings, mask[:, : embeddings.shape[1]].astype(bool)

    def _on_devices(self, function: Callable, input_ids: jax.Array, attention_mask: jax.Array) -> jax.Array:
        """function(module, params, ids, mask) with the rows split over the mesh, if there is one."""
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
        _check_length(limit, self._tokenizer, self.max_length)
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

    def _pad(self, ids: list[list[int]], length: int) -> tuple[np.ndarray, np.ndarray]:
        input_ids = np.full((len(ids), length), self._pad_id, np.int32)
        mask = np.zeros((len(ids), length), np.int32)
        for i, row in enumerate(ids):
            input_ids[i, : len(row)] = row
            mask[i, : len(row)] = 1
        return input_ids, mask


@functools.partial(jax.jit, static_argnums=0)
def _embed_zeroed(module: nn.Module, params: Any, input_ids: jax.Array, mask: jax.Array):
    embeddings = embed(module, params, input_ids, mask)
    return jnp.where(mask[:, : embeddings.shape[1], None] != 0, embeddings, 0)


def _lengthened(text: TextCond, length: int) -> TextCond:
    missing = length - text.mask.shape[1]
    return TextCond(
        jnp.pad(text.embeddings, ((0, 0), (0, missing), (0, 0))), jnp.pad(text.mask, ((0, 0), (0, missing)))
    )


def _bucket(length: int, limit: int) -> int:
    """Return the smallest of 8, 16, 24, 32, 48, 64, 96, 128, ... that holds `length`, at most `limit`.

    Powers of two and the middles between them: at most a third is padding, in few shapes.
    """
    size = 8
    while size < length:
        power = 1 << (size.bit_length() - 1)
        size += 8 if size <= 24 else power // 2
    return min(size, limit)


def _check_captions(captions: Sequence[str]) -> None:
    if isinstance(captions, str):
        raise TypeError(f"captions must be a list of str; got the str {captions!r}: put it in [].")
    is_list = hasattr(captions, "__len__") and hasattr(captions, "__getitem__")
    if not is_list or isinstance(captions, bytes | bytearray | Mapping) or getattr(captions, "ndim", 1) != 1:
        raise TypeError(f"captions must be a list of str; got {type(captions).__name__}: pass a list.")
    if not len(captions):
        raise ValueError("captions must hold at least one str; got an empty list: pass some.")
    for i, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise TypeError(
                f"captions must be str; got {type(caption).__name__} at index {i}: decode or convert it."
            )
        if not caption.isascii() and any("\ud800" <= char <= "\udfff" for char in caption):
            raise ValueError(
                f"captions must be valid Unicode; got half a surrogate pair at index {i} "
                f"({shorten(caption)}): decode it with errors='replace'."
            )


def _check_length(length: int, tokenizer: Any, limit: int) -> None:
    least = tokenizer.num_special + 1
    if isinstance(length, bool) or not isinstance(length, int | np.integer) or not least <= length <= limit:
        raise ValueError(
            f"length must be from {least} (special tokens and one more) to max_length = {limit}; "
            f"got {length!r}: pass such a length, or load the encoder with another max_length."
        )


def _max_length(directory: Path, tokenizer: Any, config: Any, given: int | None, default: int) -> int:
    """`given`, or else the smallest limit that the model's files state, or else `default`."""
    reach = config.max_length
    if given is not None:
        _check_length(given, tokenizer, reach or model_files.NO_LIMIT)
        return given
    stated = model_files.read_limit(directory / "sentence_bert_config.json", "max_seq_length")
    if stated is None:
        stated = model_files.read_limit(directory / "tokenizer_config.json", "model_max_length")
    return min((limit for limit in (stated, reach) if limit is not None), default=default)


def _pad_id(directory: Path, tokenizer: Any) -> int:
    # Masked everywhere, so it matters only to code that reads input_ids.
    token = model_files.read_settings(directory / "tokenizer_config.json").get("pad_token")
    if isinstance(token, dict):  # Some files spell out how the token is matched.
        token = token["content"]
    return (token is not None and tokenizer.id_of(token)) or 0


def _check_ids(input_ids: Any, attention_mask: Any, vocab_size: int) -> None:
    shape, dtype = np.shape(input_ids), getattr(input_ids, "dtype", None)
    if (
        len(shape) != 2
        or np.shape(attention_mask) != shape
        or dtype is None
        or not jnp.issubdtype(dtype, jnp.integer)
    ):
        raise ValueError(
            f"input_ids must be an integer array [B, L] and attention_mask have its shape; got shapes {shape} and "
            f"{np.shape(attention_mask)} and dtype {dtype}: pass what `tokenize` returns."
        )
    if isinstance(input_ids, jax.core.Tracer) or 0 in shape:
        return
    least, most = int(input_ids.min()), int(input_ids.max())
    if least < 0 or most >= vocab_size:
        wrong = least if least < 0 else most
        raise ValueError(
            f"input_ids must be from 0 to {vocab_size - 1}, the model's vocabulary; got {wrong}: "
            "pass ids of its own tokenizer."
        )


def unknown_message(name: str, unknown: Sequence[str], num: int) -> str:
    """Return the message about `unknown` of `num` captions that the encoder `name` cannot read."""
    first = ", ".join(map(shorten, unknown[:3]))
    return (
        f"{len(unknown)} of {num} captions consist mostly of text that the tokenizer of {name} does not know, such as "
        f"{first}: their embeddings hardly differ; rephrase them, or choose an encoder that reads them, such as "
        "google/mt5-base (most languages) or google/byt5-base (any text)."
    )


def shorten(caption: str) -> str:
    """Return a caption as messages show it."""
    return repr(caption if len(caption) <= 60 else caption[:57] + "...")
