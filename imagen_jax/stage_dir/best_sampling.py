"""The best sampling options that imagen-jax sweep found, stored beside the stages of a cascade."""

import dataclasses
from pathlib import Path
from typing import Any

from imagen_jax.checks import require
from imagen_jax.config import SamplingConfig, from_dict, read_json, to_dict
from imagen_jax.config.validation import validate_sampling
from imagen_jax.stage import Stage
from imagen_jax.stage_dir import checksums
from imagen_jax.storage import files, locations

SAMPLING_FILE = "sampling.json"


def save_best_sampling(workdir: str | Path, found: dict[str, SamplingConfig], about: dict[str, Any]) -> Path:
    """Store sampling options in a cascade's directory.

    Args:
      workdir: of the cascade.
      found: options by the name of the stage.
      about: JSON values that say how they were found.

    Returns:
      the file.
    """
    file = locations.location(workdir, "--workdir") / SAMPLING_FILE
    options = {name: to_dict(sampling) for name, sampling in found.items()}
    files.write_json(
        file, {"stages": options, "about": about, "checksum": checksums.of_json(options)}, indent=2
    )
    return file


def apply_best_sampling(workdir: Path, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return the stages with the sampling options that `save_best_sampling` stored.

    Raises:
      ValueError: there are none, or they have changed or do not fit the stages.
    """
    file = workdir / SAMPLING_FILE
    if not files.exists(file):
        raise ValueError(f"{file} must exist for the best options; got no such file: make it with imagen-jax sweep.")
    data = read_json(file)
    replaced = []
    try:
        found = data.get("stages") if isinstance(data, dict) else None
        require(isinstance(found, dict), "stages", "be a JSON object of sampling options by stage", found)
        if data.get("checksum", checksums.of_json(found)) != checksums.of_json(found):
            raise ValueError(
                "options must be as imagen-jax sweep stored them; got others: remove the line of the checksum "
                "if it is yours."
            )
        for each in stages:
            sampling = each.config.sampling
            if each.config.name in found:
                sampling = from_dict(found[each.config.name], SamplingConfig, each.config.name)
            validate_sampling(each.config, sampling, prefix=f"{each.config.name}.")
            replaced.append(each.replace(config=dataclasses.replace(each.config, sampling=sampling)))
    except ValueError as error:
        reason = str(error).rstrip(".")
        raise ValueError(f"{file} must hold sampling options; got an error in them: {reason}.") from error
    return tuple(replaced)
