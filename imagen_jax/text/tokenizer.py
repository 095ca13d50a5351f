"""The tokenizers of published language models, from the files that lie beside their weights."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagen_jax.text import pretrained

_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model")


def load(directory: Path) -> Any:
    """The model's own tokenizer, as a `tokenizers.Tokenizer` that neither cuts nor pads.

    Raises:
      ValueError: the directory holds no tokenizer, or one that cannot be read.
    """
    files = files_of(directory)
    for file in files:
        if file.name in _SETTINGS:
            pretrained.read_json(file)  # or the libraries blame another file
    try:
        if files[0].name == "tokenizer.json":
            from tokenizers import Tokenizer

            tokenizer = Tokenizer.from_file(str(files[0]))
        elif files[0].name == "tokenizer_config.json":
            tokenizer = _byte_tokenizer(pretrained.read_json(files[0]))
        else:
            # Older checkpoints keep only a vocabulary; transformers knows how to build on it. Its advice to
            # install torch is for other uses.
            os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)._tokenizer
    except Exception as error:  # The libraries have no common base class for their errors.
        fix = "get the tokenizer's files again"
        if files[0].suffix == ".model" and importlib.util.find_spec("sentencepiece") is None:
            fix = "run `pip install sentencepiece`, which it needs"
        raise ValueError(
            f"the tokenizer {files[0]} cannot be read ({pretrained.first_line(error)}); {fix}."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _byte_tokenizer(config: Mapping[str, Any]) -> Any:
    """ByT5's (Xue et al. 2021, arXiv:2105.13626), which has no file: three special tokens, the 256 bytes,
    and the sentinels."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    special = ["<pad>", "</s>", "<unk>"]
    sentinels = [f"<extra_id_{i}>" for i in range(config.get("extra_ids", 125))]
    printable = [b for b in range(256) if chr(b).isprintable() and not chr(b).isspace()]
    # Byte-level tokenizers write a byte that is not printable as a character beyond the first 256.
    others = [b for b in range(256) if b not in printable]
    characters = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    tokens = [*special, *(characters[b] for b in range(256)), *sentinels]
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(
        [*(AddedToken(t, lstrip=True, rstrip=True) for t in special), *map(AddedToken, sentinels)]
    )
    return tokenizer


def files_of(directory: Path) -> list[Path]:
    """The files that define the tokenizer, in a fixed order; ValueError if there are none."""
    present = lambda names: [directory / name for name in names if (directory / name).is_file()]
    files, settings = present(_FILES), present(_SETTINGS)
    if not files and settings and settings[0].name == "tokenizer_config.json":
        if pretrained.read_json(settings[0]).get("tokenizer_class") == "ByT5Tokenizer":
            return settings
    if not files:
        raise ValueError(
            f"a text encoder's directory must hold its tokenizer, got {directory} without any of "
            f"{', '.join(_FILES)}; copy them from where the weights came from."
        )
    return files[:1] if files[0].name == "tokenizer.json" else files + settings
