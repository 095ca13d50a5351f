"""The commands: their scripts, and how the user runs them."""

import sys

_CONTINUES = "the same command continues"
# The module of each command, in the order of --help: the script that runs it too, and what its user can do after an
# interruption.
COMMANDS = {
    "prepare": ("prepare_data.py", _CONTINUES),
    "embed": ("embed_text.py", _CONTINUES),
    "train": ("train.py", _CONTINUES),
    "sample": ("sample.py", ""),
    "evaluate": ("evaluate.py", ""),
    "sweep": ("sweep.py", ""),
    "recogniser": ("train_recogniser.py", ""),
    "plan": ("plan.py", ""),
    "benchmark": ("benchmark.py", ""),
    "export": ("export.py", ""),
    "convert": ("convert_weights.py", ""),
}
PROGRAM = "imagen-jax"



def typed(command: str) -> str:
    """Return how the user runs `command`, in the same way as the command that is running."""
    from pathlib import Path

    path = Path(sys.argv[0])
    return f"python {path.with_name(COMMANDS[command][0])}" if path.suffix == ".py" else f"{PROGRAM} {command}"


def examples_as_typed(text: str) -> str:
    """Return a description with its examples in the form in which the user runs commands."""
    for command in COMMANDS:
        text = text.replace(f"  {PROGRAM} {command} ", f"  {typed(command)} ")
    return text
