"""The console command `imagen-jax COMMAND ...`; scripts/*.py run the same commands.

Nothing slow is imported before signals are handled.
"""

import sys

from imagen_jax import signals

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
    "plan": ("plan.py", ""),
    "convert": ("convert_weights.py", ""),
    "emoji": ("prepare_emoji.py", ""),
}
PROGRAM = "imagen-jax"


def main() -> None:
    """Run `imagen-jax COMMAND ...`. The options of all commands may also stand before the command."""
    args = sys.argv[1:]
    command = next((arg for arg in args if not arg.startswith("-")), None)
    if command in COMMANDS:
        args.remove(command)
        sys.argv[:] = [f"{PROGRAM} {command}", *args]  # the name in messages, also of signals
        run(command)
    elif command is None and ("-h" in args or "--help" in args):
        print(_overview())
    elif command is None and "--version" in args:
        import imagen_jax

        print(f"{PROGRAM} {imagen_jax.__version__}")
    else:
        import difflib

        near = difflib.get_close_matches(command or "", COMMANDS, 1)
        got = "none" if command is None else f"{command!r}{f' (did you mean {near[0]}?)' if near else ''}"
        names = ", ".join(COMMANDS)
        print(f"{PROGRAM}: COMMAND must be one of {names}; got {got}: --help describes them.", file=sys.stderr)
        sys.exit(2)


def run(command: str) -> None:
    """Run a command with the options in sys.argv, and exit with its status."""
    signals.install(COMMANDS[command][1])
    import importlib

    from imagen_jax.cli import program

    load = lambda: importlib.import_module(f"imagen_jax.cli.{command}")
    program.run(lambda parsed: load().main(parsed), lambda: load().parse(sys.argv[1:]))


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


def _overview() -> str:
    """Return the text of `imagen-jax --help`: each command with the first line of its module."""
    import ast
    from pathlib import Path

    lines = []
    for command in COMMANDS:
        source = Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
        lines.append(f"  {command:10}{ast.get_docstring(ast.parse(source)).splitlines()[0]}")
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [OPTIONS]   ({PROGRAM} COMMAND --help describes the options of a command)",
            "",
            *lines,
            "",
            "  --version prints the version.",
        ]
    )
