"""The tokenizers of published language models, from the files that lie beside their weights."""

import contextlib
import importlib.util
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from imagen_jax import checks
from imagen_jax.text import model_files
from imagen_jax.text.sentencepiece_tokenizer import SentencePieceTokenizer

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_FILES = ("tokenizer.json", "spiece.model", "vocab.txt", "vocab.json", "merges.txt")
_LARGEST_VOCABULARY = 1 << 20
# Encoded when a tokenizer is loaded, to find files with which every caption fails.
_PROBES = ("", "a", "A photo of a cat.", " \u5317\u4eac \U0001f43b\n", "a" * 400 + "!", "ab " * 100)


class Tokenizer(Protocol):
    """A tokenizer of captions, without cutting and padding.

    Attributes:
      num_special: how many special tokens a caption gets.
      num_ids: one more than the largest id.
      unknown_id: of text that is not in the vocabulary; None if it covers all text.
    """

    num_special: int
    num_ids: int
    unknown_id: int | None

    def encode(self, captions: Sequence[str]) -> list[list[int]]:
        """Return the ids of each caption, special tokens included."""

    def cut(self, caption: str, length: int) -> list[int]:
        """Return at most `length` ids of a caption, special tokens kept."""

    def unknown_share(self, caption: str) -> float:
        """Return the larger share, of a caption's characters or of its tokens, that is unknown."""

    def id_of(self, token: str) -> int | None:
        """Return the id of a token as it is written in files, None if there is none."""


def directory_of(model: Path) -> Path:
    """Return the directory of a model's tokenizer: the model's own, or that beside it in diffusers' layout."""
    beside = model.parent / "tokenizer"
    is_apart = model.name == "text_encoder" and beside.is_dir()
    return beside if is_apart and not any((model / name).is_file() for name in _FILES) else model


def load(directory: Path, vocab_size: int = _LARGEST_VOCABULARY) -> Tokenizer:
    """Return the tokenizer of a model directory.

    Args:
      directory: of the model.
      vocab_size: of the model.

    Raises:
      ValueError: the directory holds no tokenizer, one that cannot be read, or one with more than `vocab_size` ids.
    """
    files = files_of(directory)
    for file in files:
        # For a token and its merges the largest published ones have 120 bytes.
        limit = min(model_files.MAX_TEXT_BYTES, (4 << 20) + 400 * vocab_size)
        model_files.check_size(file, limit if file.name in _FILES else model_files.MAX_TEXT_BYTES)
        if file.name in _SETTINGS:
            model_files.read_settings(file)  # or the libraries blame another file
    try:
        with _dropping_panics():
            tokenizer = _build(directory, files[0], vocab_size)
            for caption in _PROBES:
                tokenizer.encode([caption])
    except BaseException as error:  # The libraries have no common base class for their errors.
        if isinstance(error, _TooManyIds | KeyboardInterrupt | SystemExit):
            raise
        fix = "get the tokenizer's files again"
        if files[0].suffix == ".model" and importlib.util.find_spec("sentencepiece") is None:
            fix = "run `pip install sentencepiece`, which it needs"
        reason = model_files.first_line(error.__cause__ or error).rstrip(".")
        raise ValueError(f"the tokenizer {files[0]} must be readable; it is not ({reason}): {fix}.") from error
    _check_vocabulary(directory, tokenizer.num_ids, vocab_size)
    return tokenizer


def check_length(length: int, tokenizer: Tokenizer, limit: int) -> None:
    """Raise a ValueError unless captions can have `length` tokens; `limit` is the most that the encoder takes."""
    least = tokenizer.num_special + 1
    rule = f"be from {least} (special tokens and one more) to max_length = {limit}"
    fix = "pass such a length, or load the encoder with another max_length"
    checks.require(checks.is_whole(length) and least <= length <= limit, "length", rule, length, fix)


def max_length(directory: Path, tokenizer: Tokenizer, reach: int | None, given: int | None, default: int) -> int:
    """Return the most tokens of a caption, special tokens included.

    Args:
      directory: of the model.
      tokenizer: of the model.
      reach: the most positions of the model; None: no limit.
      given: the number that the user wants; None: the smallest limit that the model's files state.
      default: where the files state none.

    Raises:
      ValueError: `given` is out of range.
    """
    if given is not None:
        check_length(given, tokenizer, reach or model_files.NO_LIMIT)
        return given
    stated = model_files.read_limit(directory / "sentence_bert_config.json", "max_seq_length")
    if stated is None:
        stated = model_files.read_limit(directory / "tokenizer_config.json", "model_max_length")
    return min((limit for limit in (stated, reach) if limit is not None), default=default)


def pad_id(directory: Path, tokenizer: Tokenizer) -> int:
    """Return the id at padding, which is masked everywhere: it matters only to code that reads input_ids."""
    token = model_files.read_settings(directory / "tokenizer_config.json").get("pad_token")
    if isinstance(token, dict):  # Some files spell out how the token is matched.
        token = token["content"]
    return (token is not None and tokenizer.id_of(token)) or 0


def files_of(directory: Path) -> list[Path]:
    """Return the files that define the tokenizer, in a fixed order; raise ValueError if there are none."""
    present = lambda names: [directory / name for name in names if (directory / name).is_file()]
    files, settings = present(_FILES), present(_SETTINGS)
    if not files and settings and settings[0].name == "tokenizer_config.json":
        if model_files.read_settings(settings[0]).get("tokenizer_class") == "ByT5Tokenizer":
            return settings
    if not files:
        raise ValueError(
            f"a text encoder's directory must hold its tokenizer; got {directory} without any of "
            f"{', '.join(_FILES)}: copy them from where the weights came from."
        )
    return files[:1] if files[0].name == "tokenizer.json" else files + settings


class _TooManyIds(ValueError):
    pass


def _check_vocabulary(directory: Path, num_ids: int, vocab_size: int) -> None:
    if num_ids > vocab_size:
        raise _TooManyIds(
            f"{directory}: the tokenizer must know at most the model's {vocab_size} tokens; "
            f"got {num_ids}: get the tokenizer's files and the weights from the same model."
        )


def _build(directory: Path, file: Path, vocab_size: int) -> Tokenizer:
    if file.name == "spiece.model":
        return SentencePieceTokenizer(directory, vocab_size)
    if file.name == "tokenizer.json":
        from tokenizers import Tokenizer as FromFile

        return _LibraryTokenizer(FromFile.from_file(str(file)))
    if file.name == "tokenizer_config.json":
        extra_ids = model_files.read_settings(file).get("extra_ids", 125)
        _check_vocabulary(directory, _NUM_BYTE_IDS + extra_ids, vocab_size)
        return _LibraryTokenizer(_byte_tokenizer(extra_ids))
    if file.name == "vocab.txt":
        _check_vocabulary(directory, file.read_bytes().count(b"\n"), max(2 * vocab_size, vocab_size + 1000))
    # Older checkpoints keep only a vocabulary; transformers knows how to build on it. Its advice to
    # install torch is for other uses.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    from transformers import AutoTokenizer

    return _LibraryTokenizer(AutoTokenizer.from_pretrained(directory, local_files_only=True)._tokenizer)


class _LibraryTokenizer:
    """One of the tokenizers library; see `Tokenizer`."""

    def __init__(self, tokenizer: Any):
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.num_special = tokenizer.num_special_tokens_to_add(False)
        special = tokenizer.encode("").ids
        self.num_ids = 1 + max(*tokenizer.get_vocab(with_added_tokens=True).values(), *special, -1, -1)
        names = (getattr(tokenizer.model, "unk_token", None), "<unk>", "[UNK]")
        ids = [tokenizer.token_to_id(name) for name in names if name]
        unknown = next((id for id in ids if id is not None), None)
        # CLIP's is the end of the text, and its vocabulary spells everything.
        self.unknown_id = None if unknown in special else unknown

    def encode(self, captions: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._call(self._tokenizer.encode_batch, [*captions])]

    def cut(self, caption: str, length: int) -> list[int]:
        # Cut before the special tokens are added, so that the final one is kept.
        encoding = self._call(self._tokenizer.encode, caption, add_special_tokens=False)
        encoding.truncate(length - self.num_special)
        return self._tokenizer.post_process(encoding).ids

    def unknown_share(self, caption: str) -> float:
        encoding = self._call(self._tokenizer.encode, caption, add_special_tokens=False)
        size = lambda text: len("".join(text.split()))
        unknown = [
            span for id, span in zip(encoding.ids, encoding.offsets, strict=True) if id == self.unknown_id
        ]
        in_unknown = sum(size(caption[start:end]) for start, end in unknown)
        return max(in_unknown / max(size(caption), 1), len(unknown) / max(len(encoding.ids), 1))

    def id_of(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    @staticmethod
    def _call(function: Any, *args, **options) -> Any:
        try:
            return function(*args, **options)
        except BaseException as error:
            # What the library's Rust code panics with, such as a regex without end, is no Exception.
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            reason = model_files.first_line(error)
            raise ValueError(
                f"captions must be such as the tokenizer can encode, and it fails ({reason}); leave the captions out "
                "that it fails with, or get the tokenizer's files again."
            ) from error


# Three special tokens and the bytes.
_NUM_BYTE_IDS = 3 + 256


def _byte_tokenizer(extra_ids: int) -> Any:
    """Return ByT5's tokenizer (Xue et al. 2021, arXiv:2105.13626), which has no file: special tokens, the 256 bytes,
    and the sentinels."""
    from tokenizers import AddedToken, models, pre_tokenizers, processors
    from tokenizers import Tokenizer as FromModel

    special = ["<pad>", "</s>", "<unk>"]
    sentinels = [f"<extra_id_{i}>" for i in range(extra_ids)]
    printable = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace()]
    # Byte-level tokenizers write a byte that is not printable as a character beyond the first 256.
    others = [b for b in range(256) if b not in printable]
    characters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    tokens = [*special, *(characters[b] for b in range(256)), *sentinels]
    tokenizer = FromModel(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(
        [*(AddedToken(t, lstrip=True, rstrip=True) for t in special), *map(AddedToken, sentinels)]
    )
    return tokenizer


@contextlib.contextmanager
def _dropping_panics() -> Iterator[None]:
    """Hold stderr back, and drop it on an error: a panic in Rust code prints a stack trace of its own."""
    try:
        stderr = os.dup(2)
    except OSError:  # a process without stderr
        yield
        return
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.truncate(0)
            raise
        finally:
            os.dup2(stderr, 2)
            held.seek(0)
            with contextlib.suppress(OSError):
                os.write(stderr, held.read(1 << 16)) if os.fstat(held.fileno()).st_size else None
            os.close(stderr)
