"""Presets: Python files whose `get_config` returns the stages of a cascade. Being executed, they must be trusted."""

import inspect
import traceback
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagen_jax.checks import require, text
from imagen_jax.config.stage import StageConfig
from imagen_jax.config.validation import validate_cascade
from imagen_jax.storage import locations

_PACKAGE = Path(__file__).parent.parent
_FOLDERS = (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # as installed, and in a checkout
_MAX_BYTES = 2**20


def load_preset(name_or_path: str) -> tuple[StageConfig, ...]:
    """Return the checked stages of a preset, from the function `get_config` of its file.

    Args:
      name_or_path: a name in configs/, or the path of a .py file, which is run. A colon and words choose among the
        preset's variants, as in "base64:1b,paper". Each parameter of its `get_config` is a `Literal` of such words,
        with a default.

    Raises:
      ValueError: there is no such preset or variant, the file cannot be run, or what it returns is no valid cascade.
    """
    locations.local(text("--preset", name_or_path), "--preset")
    name_or_path, _, variant = name_or_path.partition(":")
    path = _file(name_or_path)
    if not _is_file(path):
        known = ", ".join(sorted(file.stem for file in _folder().glob("*.py")))
        raise ValueError(
            f"--preset must be one of {known}, the path of a .py file, or the directory of a cascade; "
            f"got {name_or_path!r}."
        )
    size = path.stat().st_size
    require(size <= _MAX_BYTES, f"--preset {path}", f"have at most {_MAX_BYTES} bytes", size)
    module = types.ModuleType(f"imagen_jax_preset_{path.stem}")
    module.__file__ = str(path)
    # Compiled here, since an import would write a bytecode cache next to the file.
    _run(path, lambda: exec(compile(path.read_bytes(), str(path), "exec"), vars(module)))
    get_config = getattr(module, "get_config", None)
    rule = "define a function get_config that returns the stages"
    require(inspect.isfunction(get_config), f"--preset {path}", rule, get_config)
    chosen = _run(path, lambda: _variant(path.stem, get_config, variant))
    stages = _run(path, lambda: get_config(**chosen))
    is_list = isinstance(stages, tuple | list) and all(isinstance(stage, StageConfig) for stage in stages)
    require(is_list, f"--preset {path}", "return a tuple of StageConfig from get_config", stages)
    return validate_cascade(tuple(stages))


def is_preset(name_or_path: str) -> bool:
    """Whether there is a preset of this name, or a file at this path."""
    return _is_file(_file(name_or_path.partition(":")[0]))


def _file(name_or_path: str) -> Path:
    return Path(name_or_path) if name_or_path.endswith(".py") else _folder() / f"{name_or_path}.py"


def _folder() -> Path:
    return next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long, or in a directory that cannot be read
        return False


def _run(path: Path, function: Callable[[], Any]) -> Any:
    """Return function(), which executes code of the preset; raise its errors as a ValueError of one line."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError) and str(error).startswith("--preset"):
            raise
        frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError):
            frames.append((error.filename, error.lineno))
        lines = [line for file, line in frames if file == str(path)]
        where = f" in line {lines[-1]}" if lines else ""
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--preset {path} must be Python that runs without errors; got {type(error).__name__}{where}"
            f"{f' ({reason})' if reason else ''}: presets are run to get their stages."
        ) from error


def _variant(preset: str, get_config: Callable, words: str) -> dict[str, str]:
    """Return words such as "1b,paper" by the parameter of `get_config` whose choices contain them."""
    hints = typing.get_type_hints(get_config)
    choices = {name: typing.get_args(hints[name]) for name in hints if name != "return"}
    chosen = {}
    for word in words.split(",") if words else ():
        name = next((name for name, allowed in choices.items() if word in allowed), None)
        variants = "; ".join(f"{name}: {', '.join(map(str, allowed))}" for name, allowed in choices.items())
        rule = f"be followed by at most one word each of its variants ({variants or 'it has none'})"
        require(name is not None and name not in chosen, f"--preset {preset}", rule, words)
        chosen[name] = word
    return chosen
