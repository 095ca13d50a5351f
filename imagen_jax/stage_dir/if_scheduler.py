"""The schedulers of a pipeline of DeepFloyd IF, in diffusers' layout, as options of sampling.

    PIPELINE/scheduler/scheduler_config.json
    PIPELINE/image_noising_scheduler/scheduler_config.json    of stage II: how its low-res image is noised

What a scheduler says is either taken over or refused, since pictures would differ from those of diffusers; a key that
is not there has diffusers' default. Without a file, a stage is sampled as it was published.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from imagen_jax import checks
from imagen_jax.checks import require
from imagen_jax.config import SamplingConfig, StageConfig
from imagen_jax.config.deepfloyd import NUM_STEPS
from imagen_jax.storage import files
from imagen_jax.text import model_files

FILE = "scheduler_config.json"
SAMPLING, NOISING = "scheduler", "image_noising_scheduler"
_NO_CAP = 1_000_000  # the largest cap that is read
_FIX = "give a scheduler of DeepFloyd IF, or remove the folder, after which the stage is sampled as it was published"
# How IF's networks were trained, and how the low-res image is noised.
_NOISE = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": NUM_STEPS, "trained_betas": None}
_NOISE |= {"rescale_betas_zero_snr": False}
_TRAINED = _NOISE | {"_class_name": "DDPMScheduler", "prediction_type": "epsilon", "steps_offset": 0}
# What a key of a DDPMScheduler is in diffusers where the file does not have it, if that is not as above.
_DEFAULTS = {
    "beta_schedule": "linear",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "dynamic_thresholding_ratio": 0.995,
    "sample_max_value": 1.0,
    "thresholding": False,
    "timestep_spacing": "leading",
    "variance_type": "fixed_small",
}
# Options of sampling by a key's value; fixed variances are those of fine-tunes that did not train the network's.
_GAMMAS = {"learned_range": None, "fixed_small": 0.0, "fixed_small_log": 0.0, "fixed_large": 1.0}
_SPACINGS = {
    "leading": {"spacing": "respaced", "respacing": "leading"},
    "trailing": {"spacing": "trailing", "respacing": None},
}


def read(pipeline: Path) -> dict[str, Any]:
    """Return the options of sampling, as of `SamplingConfig`, that a pipeline's schedulers stand for.

    Raises:
      ValueError: one line; a scheduler cannot be read, or is of another process than IF's.
    """
    _data(pipeline / NOISING / FILE, _NOISE)
    file = pipeline / SAMPLING / FILE
    data = _data(file, _TRAINED)
    if data is None:
        return {}
    name = partial("{}: {}".format, file)
    chosen = lambda key, values: _choice(name(key), data[key], values)
    number = lambda key, interval: checks.number(name(key), data[key], interval, _FIX)
    options = dict(_SPACINGS[chosen("timestep_spacing", _SPACINGS)])
    options["ddpm_gamma"] = _GAMMAS[chosen("variance_type", _GAMMAS)]
    if chosen("thresholding", (True, False)):
        percentile = number("dynamic_thresholding_ratio", "(0, 1]")
        return options | {"percentile": percentile, "cap": number("sample_max_value", f"[1, {_NO_CAP}]")}
    is_clipped, bound = chosen("clip_sample", (True, False)), data["clip_sample_range"]
    require(not is_clipped or bound == 1, name("clip_sample_range"), "be 1", bound, _FIX)
    return options | {"threshold": "static" if is_clipped else "none", "percentile": None, "cap": None}


def _data(file: Path, rules: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a scheduler's file says, defaults included, after checking it; None if there is none."""
    if not file.is_file():
        return None
    data = _TRAINED | _DEFAULTS | model_files.read_json(file)
    for key, value in rules.items():
        found = data[key]
        require(found == value, f"{file}: {key}", f"be {value!r}", found, _FIX)
    return data


def _choice(name: str, found: Any, values: Any) -> Any:
    is_one = isinstance(found, str | bool) and found in values
    require(is_one, name, f"be {' or '.join(map(repr, values))}", found, _FIX)
    return found


def write(pipeline: Path, config: StageConfig) -> None:
    """Write the schedulers of a stage to new folders in the directory of a pipeline.

    Options of sampling that diffusers' scheduler does not have stay those of IF.
    """
    folders = {SAMPLING: to_json(config.sampling)}
    if config.is_super_resolution:
        folders[NOISING] = _NOISE | {"_class_name": "DDPMScheduler"}
    for name, data in folders.items():
        (pipeline / name).mkdir()
        files.write_json(pipeline / name / FILE, data, indent=2)


def to_json(sampling: SamplingConfig) -> dict[str, Any]:
    """Return the configuration of diffusers' scheduler that samples with these options as far as it has them."""
    variances = [name for name, gamma in _GAMMAS.items() if gamma == sampling.ddpm_gamma]
    data = _TRAINED | {
        "variance_type": variances[0] if variances else "learned_range",
        "timestep_spacing": "trailing" if sampling.spacing == "trailing" else "leading",
        "thresholding": sampling.threshold == "dynamic",
        "clip_sample": sampling.threshold != "none",
        "clip_sample_range": 1.0,
    }
    if data["thresholding"]:
        limit = sampling.method("threshold")
        data |= {"dynamic_thresholding_ratio": limit.percentile, "sample_max_value": limit.cap or _NO_CAP}
    return data
