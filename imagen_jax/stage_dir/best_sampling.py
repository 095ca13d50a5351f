"""The best sampling options that imagen-jax sweep found, stored beside the stages of a cascade."""

import dataclasses
from pathlib import Path
from typing import Any

from imagen_jax.checks import Verbatim, require
from imagen_jax.config import SamplingConfig, from_dict, read_json, to_dict
from imagen_jax.config.validation import validate_sampling
from imagen_jax.stage import Stage
from imagen_jax.stage_dir import checksums
from imagen_jax.storage import files, locations

SAMPLING_FILE = "sampling.json"


def save_best_sampling(workdir: str | Path, found: dict[str, SamplingConfig], about: dict[str, Any]) -> Path:
    """Store sampling options, by the name of the stage, in a cascade's directory; return the file.

    `about` has JSON values that say how they were found.
    """
    file = locations.location(workdir, "--workdir") / SAMPLING_FILE
    options = {name: to_dict(sampling) for name, sampling in found.items()}
    content = {"stages": options, "about": about, "checksum": checksums.of_json(options)}
    files.write_json(file, content, indent=2)
    return file


def apply_best_sampling(workdir: Path, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return the stages with the sampling options that `save_best_sampling` stored.

    Raises:
      ValueError: there are none, or they have changed or do not fit the stages.
    """
    file = workdir / SAMPLING_FILE
    got, fix = Verbatim("no such file"), "make it with imagen-jax sweep"
    require(files.exists(file), file, "exist for the best options", got, fix)
    data = read_json(file)
    replaced = []
    try:
        found = data.get("stages") if isinstance(data, dict) else None
        require(isinstance(found, dict), "stages", "be a JSON object of sampling options by stage", found)
        is_stored = data.get("checksum", checksums.of_json(found)) == checksums.of_json(found)
        fix = "remove the line of the checksum if it is yours"
        require(is_stored, "options", "be as imagen-jax sweep stored them", Verbatim("others"), fix)
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
