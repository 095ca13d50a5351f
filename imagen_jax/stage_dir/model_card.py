"""The model card of an exported cascade: what its authors say of it, and README.md made of that."""

import dataclasses
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from imagen_jax.checks import error, fields, require
from imagen_jax.config import StageConfig
from imagen_jax.storage import input_files

_MAX_BYTES = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Card:
    """What the authors of a cascade say of it, in Markdown; empty: not stated."""

    title: str = ""
    """Name of the cascade."""
    summary: str = ""
    """What it draws, in one or two sentences."""
    captions: str = ""
    """The captions that it knows, such as styles and forms; shown by --help."""
    prompts: tuple[str, ...] = ()
    """Examples of prompts."""
    intended_use: str = ""
    """What it is meant for, and what it cannot do."""
    data: str = ""
    """What it was trained on."""
    licences: str = ""
    """Licences of the data and of the weights."""
    hardware: str = ""
    """What it was trained on: devices and their number."""
    time: str = ""
    """How long that took."""
    pictures_seen: str = ""
    """Pictures in all steps of training; empty: steps times batch size of each stage."""
    metrics: str = ""
    """What was measured, on what, with which command."""

    @classmethod
    def of(cls, values: Any, name: str) -> "Card":
        """Return the card with these fields.

        Args:
          values: as from JSON or TOML.
          name: of the values in messages.

        Raises:
          ValueError: they are no dict, or a field is unknown or of another type.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        require(isinstance(values, dict), name, f"have fields among {', '.join(known)}", values)
        for key in values.keys() - set(known):
            raise error(name, f"have fields among {', '.join(known)}", key)
        lists = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        card = cls(**lists)
        fields(card, dict.fromkeys(known, "may be empty"), f"{name} ")
        return card


def read(path: Path, option: str) -> Card:
    """Return the card in a TOML file that a user names with an option.

    Raises:
      ValueError: it cannot be read, or holds other fields than those of `Card`.
    """
    content = input_files.read_given(option, path, _MAX_BYTES, "a TOML file", "name another")
    try:
        values = tomllib.loads(content.decode())
    except ValueError as wrong:  # of the decoding, or of TOML
        raise ValueError(f"{option} must be a TOML file; got {path}, which is none ({wrong}): correct it.") from wrong
    return Card.of(values, f"{option} {path}")


class Summary(NamedTuple):
    """What the card says of a stage beside its configuration: parameters, bytes of its file, step of training."""

    parameters: int
    size: int
    step: int | None

    @classmethod
    def of(cls, params: Any, size: int, step: int | None) -> "Summary":
        """Return the summary of a stage with these parameters."""
        return cls(sum(leaf.size for leaf in jax.tree.leaves(params)), size, step)


def markdown(card: Card, configs: Sequence[StageConfig], summaries: Sequence[Summary], dtype: str) -> str:
    """Return README.md of an exported cascade.

    Args:
      card: by its authors.
      configs: of the stages, base first.
      summaries: of the stages.
      dtype: of the weight files.
    """
    prompts = card.prompts or ("a caption",)
    rows = [
        f"| {config.name} | {_sizes(config)} | {summary.parameters / 1e6:.2f} | {summary.size / 1e6:.2f} | "
        f"{_or_unknown(summary.step)} | {_or_unknown(summary.step and summary.step * config.optim.batch_size)} |"
        for config, summary in zip(configs, summaries, strict=True)
    ]
    title, words = card.title or "A text-to-image cascade", " ".join(f'"{prompt}"' for prompt in prompts)
    table = ["| stage | pixels | million parameters | MB | steps | pictures seen |", "|---|---|---:|---:|---:|---:|"]
    parts = [
        "---\nlibrary_name: imagen_jax\npipeline_tag: text-to-image\n---",
        f"# {title}",
        card.summary,
        f"Cascaded pixel diffusion, trained and sampled with imagen_jax. Averaged parameters in {dtype}.",
        "## How to sample",
        f"```bash\nimagen-jax sample --pretrained DIRECTORY --prompts {words}\n```",
        "where DIRECTORY is the one of this file, or `hf://OWNER/NAME` on the Hugging Face hub. In Python "
        "`imagen_jax.load_cascade` takes the same.",
        card.captions,
        "## Stages",
        "\n".join([*table, *rows]),
        f"Text encoder: {configs[0].text.encoder}, {configs[0].text.length} tokens.",
        "## Intended use",
        card.intended_use or _UNKNOWN,
        "## Data",
        card.data or _UNKNOWN,
        "## Licences",
        card.licences or _UNKNOWN,
        "## Training",
        f"- Hardware: {card.hardware or _UNKNOWN}\n- Time: {card.time or _UNKNOWN}\n"
        f"- Pictures seen: {card.pictures_seen or 'see the table of stages.'}",
        "## Metrics",
        card.metrics or _UNKNOWN,
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


_UNKNOWN = "Not stated."


def _sizes(config: StageConfig) -> str:
    return f"{config.low_res_size} -> {config.image_size}" if config.is_super_resolution else f"{config.image_size}"


def _or_unknown(number: int | None) -> str:
    return f"{number:,}" if number else "not stated"
