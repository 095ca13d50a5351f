"""Export a trained cascade to one small directory, to share it and to sample from it with --pretrained.

  imagen-jax export --workdir runs/quickstart --output exports/quickstart --card card.toml
  imagen-jax export --workdir runs/quickstart --output exports/quickstart --dtype int8 --push-to-hub OWNER/NAME
  imagen-jax export --workdir runs/four --output exports/four --dtype int4 --difference-to shapes
  imagen-jax export --workdir exports/quickstart --push-to-hub OWNER/NAME
  imagen-jax export --workdir runs/mine --adapter base --output adapters/mine

The directory holds config.json, a safetensors file of averaged parameters for each stage, and a model card, README.md.
--pretrained of the commands that sample, --init-from of training and load_cascade take it. The card is a TOML file with
any of the texts title, summary, captions, intended_use, data, licences, hardware, time, pictures_seen and metrics, and
the list prompts. The third command stores the differences to another cascade alone, the fourth one pushes a directory
that was exported before; exported anew, such as with another --dtype, it keeps the card, NOTICE and LICENSE that it
has. The last one writes the adapters of a stage that was fine-tuned by LoRA as adapter_model.safetensors and
adapter_config.json, in the layout of PEFT, for --adapter of imagen-jax sample.
"""

import dataclasses
import logging
from pathlib import Path
from typing import Literal

from imagen_jax.checks import Verbatim, require
from imagen_jax.cli import commands, parsing
from imagen_jax.storage import directories, input_files
from imagen_jax.storage.locations import Location

_LOGGER = logging.getLogger(__name__)
_MAX_TEXT_BYTES = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    workdir: Location
    """Directory of the cascade, as imagen-jax train wrote it, or with --push-to-hub alone as this command did."""
    output: Location | None = None
    """A new directory for the export. Must be given, except to push one that is in --workdir."""
    dtype: Literal["bfloat16", "float32", "int8", "int4"] = "bfloat16"
    """Type of the weight files: float32 loses nothing; int8 is for kernels, with a scale for each output channel; int4
    for their differences to the cascade of --difference-to."""
    difference_to: str | None = None
    """With --dtype int4: name of the pretrained cascade that training began from, or hf://OWNER/NAME."""
    adapter: str | None = None
    """Name of a stage that was trained with --lora.rank: export its averaged adapters alone, as float32."""
    best: bool = False
    """Export with the sampling options that imagen-jax sweep found best, instead of the preset's."""
    card: Path | None = None
    """A TOML file of texts for the model card."""
    notice: Path | None = None
    """A text file to copy as NOTICE, such as the attributions of the data."""
    licence: Path | None = None
    """A text file to copy as LICENSE."""
    push_to_hub: str | None = None
    """OWNER/NAME: a repository on the Hugging Face hub to upload the export to; made if it does not exist."""


def main(options: Options) -> None:
    from imagen_jax.stage_dir import exported, hub, loading

    push = options.push_to_hub
    if options.adapter is not None:
        _export_adapter(options)
        return
    if options.output is None:
        found = exported.read(options.workdir)
        if push is None or found is None:
            loading.read_cascade(options.workdir)
            raise ValueError("--output must be given; got no value: name a new directory.")
        _require_defaults(options, ("workdir", "push_to_hub"), "without --output, which pushes what is there")
        hub.check_name(push, "--push-to-hub")
        exported.verify(options.workdir, found)
        hub.create(push, "--push-to-hub")
    else:
        if push is not None:
            hub.check_name(push, "--push-to-hub")
        _export(options)
    if push is not None:
        address = hub.push(options.output or options.workdir, push, "--push-to-hub")
        _LOGGER.info(f"Pushed to {address}; sample with --pretrained {hub.SCHEME}{push}.")


def _export_adapter(options: Options) -> None:
    _require_defaults(options, ("workdir", "output", "adapter"), "with --adapter")
    require(options.output is not None, "--output", "be given", Verbatim("no value"), "name a new directory")
    directories.check_new(options.output, "--output")
    from imagen_jax.stage_dir import adapter_file, directory, loading, parameters

    place = directory.absolute(options.workdir) / options.adapter
    config = directory.read_config(place)
    fix = "export the cascade without --adapter"
    got = Verbatim(f"{options.adapter}, all of whose parameters were trained")
    require(config.lora.rank > 0, "--adapter", "be a stage that was trained with --lora.rank", got, fix)
    found = loading.load_adapted(place)
    adapter_file.write(options.output, config, found.adapters, found.base)
    of, _ = parameters.split(config.init_from)
    _LOGGER.info(f"Wrote {options.output}, for stage {config.name} of {of}; sample with --adapter {options.output}.")


def _require_defaults(options: Options, but_for: tuple[str, ...], when: str) -> None:
    for field in dataclasses.fields(options):
        if field.name not in but_for:
            value, name = getattr(options, field.name), f"--{field.name.replace('_', '-')}"
            require(value == field.default, name, f"be left out {when}", value)


def _export(options: Options) -> None:
    directories.check_new(options.output, "--output")
    from imagen_jax.stage_dir import exported, hub, loading, model_card, saving

    saving.check_difference(options.dtype, options.difference_to, "--difference-to")
    found = exported.read(options.workdir)  # what it has and is not given anew is kept
    card = None if found is None else found.card
    card = card if options.card is None else model_card.read(options.card, "--card")
    texts = {} if found is None else exported.read_texts(options.workdir)
    given = {name: _text(f"--{name}", getattr(options, name)) for name in ("notice", "licence")}
    texts |= {name: text for name, text in given.items() if text is not None}
    loading.read_cascade(options.workdir, best=options.best)
    if options.push_to_hub is not None:
        hub.create(options.push_to_hub, "--push-to-hub")
    stages, loaded = loading.load_cascade(options.workdir, best=options.best, return_steps=True)
    directories.check_new(options.output, "--output", needed=saving.bytes_needed(stages, options.dtype))
    steps = {name: which for name, which in loaded.items() if isinstance(which, int)}
    if found is not None:
        steps = {name: weights.step for name, weights in found.weights.items() if weights.step is not None}
    saving.save_pretrained(
        stages,
        options.output,
        dtype=options.dtype,
        difference_to=options.difference_to,
        card=card,
        steps=steps,
        **texts,
    )
    command = f'{commands.typed("sample")} --pretrained {options.output} --prompts "a caption"'
    _LOGGER.info(f"Wrote {options.output}. Next:\n  {command}")


def _text(option: str, path: Path | None) -> str | None:
    if path is None:
        return None
    content = input_files.read_given(option, path, _MAX_TEXT_BYTES, "a text file", "name another")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{option} must be a text file in UTF-8; got {path}, which is none: convert it.") from error


def parse(args: list[str]) -> Options:
    return parsing.parse(Options, __doc__, args)
