"""The console command `imagen-jax COMMAND ...`; scripts/*.py run the same commands.

Nothing slow is imported before signals are handled.
"""

import sys

from imagen_jax import signals
from imagen_jax.cli import malloc
from imagen_jax.cli.commands import COMMANDS, PROGRAM


def main() -> None:
    """Run `imagen-jax COMMAND ...`. The options of all commands may also stand before the command."""
    malloc.restart()
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
    malloc.restart()
    signals.install(COMMANDS[command][1])
    import importlib

    from imagen_jax.cli import program

    load = lambda: importlib.import_module(f"imagen_jax.cli.{command}")
    program.run(lambda parsed: load().main(parsed), lambda args: load().parse(args))


def _overview() -> str:
    """Return the text of `imagen-jax --help`: each command with the first line of its module."""
    import ast
    from pathlib import Path

    lines = []
    for command in COMMANDS:
        source = Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
        lines.append(f"  {command:12}{ast.get_docstring(ast.parse(source)).splitlines()[0]}")
    return "\n".join(
        [
            f"usage: {PROGRAM} COMMAND [OPTIONS]   ({PROGRAM} COMMAND --help describes the options of a command)",
            "",
            *lines,
            "",
            "  --version prints the version. Every command takes --quiet and --log-json.",
        ]
    )
