"""The stages that --preset names."""

from pathlib import Path

from imagen_jax.config import StageConfig
from imagen_jax.config.presets import is_preset, load_preset


def of_preset(preset: str) -> tuple[StageConfig, ...]:
    """Return the checked stages of a preset, or of a cascade or a stage that exists, base first.

    Args:
      preset: as for `load_preset`; or the directory of a cascade or of one stage, or hf://OWNER/NAME, as for
        `load_cascade`.

    Raises:
      ValueError: one line; there is none of these, or it cannot be read.
    """
    from imagen_jax.stage_dir import hub

    is_remote = preset.startswith(hub.SCHEME)
    if not is_remote and (is_preset(preset) or not _is_directory(preset)):
        return load_preset(preset)
    from imagen_jax.stage_dir import loading

    place = preset if is_remote else Path(preset)
    return tuple(each.config for each in loading.read_cascade((place,)))


def _is_directory(place: str) -> bool:
    try:
        return bool(place) and Path(place).is_dir()
    except (OSError, ValueError):  # too long, or with a null character
        return False
