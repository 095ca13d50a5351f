"""Convert the pickled weights of a language model (pytorch_model.bin) to safetensors.

  imagen-jax convert --model models/t5-v1_1-xxl
  imagen-jax convert --model google/t5-v1_1-xxl --output models/t5-v1_1-xxl

The first command writes model.safetensors into that directory. The second downloads the model (also NAME@REVISION)
and writes it, its config and its tokenizer into a new directory; pass that directory as --text.encoder. torch is not
needed, and no code of a pickle is run: what is not a tensor is refused. T5's decoder is left out, since no encoder
reads it.
"""

import dataclasses
import logging

from imagen_jax.cli import parsing

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    model: str
    """A directory in Hugging Face layout, or a name on the Hugging Face hub."""
    output: str = ""
    """A new directory for the converted model; empty: that of the model."""


def main(options: Options) -> None:
    from imagen_jax.text import conversion

    _LOGGER.info(f"{conversion.convert(options.model, options.output or None)}: written.")


def parse(args: list[str]) -> Options:
    return parsing.parse(Options, __doc__, args)
