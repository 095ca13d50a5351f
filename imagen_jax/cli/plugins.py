"""Modules outside the package that register samplers, metrics and other methods (imagen_jax.registry)."""

import importlib
import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

GROUP = "imagen_jax.plugins"
VARIABLE = "IMAGEN_JAX_PLUGINS"


def load() -> None:
    """Import the modules of the entry points in the group "imagen_jax.plugins", and those that the environment variable
    IMAGEN_JAX_PLUGINS names: modules or .py files, separated by commas. A module is imported once in a process.

    Raises:
      ValueError: one line; a module cannot be imported.
    """
    for entry in sorted(importlib.metadata.entry_points(group=GROUP)):
        try:
            entry.load()
        except (Exception, SystemExit) as error:
            name = entry.dist.name if entry.dist else entry.value
            raise ValueError(
                f"the plugin {entry.value} of {name} must be importable; got {_reason(error)}: repair or uninstall it."
            ) from error
    for name in filter(None, (part.strip() for part in os.environ.get(VARIABLE, "").split(","))):
        try:
            _import_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"{VARIABLE} must name modules or .py files that can be imported; got {name!r} ({_reason(error)}): "
                "correct or unset it."
            ) from error


def _import_file(path: Path) -> None:
    name = f"imagen_jax_plugin:{path.resolve()}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
