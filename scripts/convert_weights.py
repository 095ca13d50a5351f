"""Makes model.safetensors of a language model whose weights are there only as pickles (pytorch_model.bin).

  python scripts/convert_weights.py --model models/t5-v1_1-xxl
  python scripts/convert_weights.py --model google/t5-v1_1-xxl --output models/t5-v1_1-xxl

The first writes model.safetensors into that directory, the second downloads the model (also NAME@REVISION) and writes
it, its config and its tokenizer into a new one; pass that directory as --text.encoder. torch is not needed, and nothing
that a pickle asks for is run: whatever is no tensor is refused. T5's decoder is left out, since no encoder reads it.
"""

import dataclasses

from imagen_jax.cli import program as cli


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    model: str
    """A directory in Hugging Face layout, or a name on the Hugging Face hub."""
    output: str = ""
    """A new directory for the converted model; empty: that of the model."""


def main(options: Options) -> None:
    from imagen_jax.text import conversion

    print(f"{conversion.convert(options.model, options.output or None)}: written.")


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__))
