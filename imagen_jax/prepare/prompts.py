"""Prompts in a text file, one a line."""

from __future__ import annotations

import re
from pathlib import Path

from imagen_jax.prepare import captions, text_files

_ESCAPED = re.compile(r"\\+#")


def read(path: Path, option: str = "--prompts-file") -> tuple[list[str], str]:
    r"""Reads a file of prompts: one a line, blanks around it left out.

    Empty lines are skipped, and so are comments: lines that begin with #. A prompt that itself begins with # is
    written with a backslash before it, `\#1 in a row` (and one that begins with `\#` with two).

    Args:
      path: of the file.
      option: how the user named it, for messages.

    Returns:
      (prompts, one line that says how many there are and what was skipped).

    Raises:
      ValueError: one line: it is no text file, or holds no prompt.
    """
    lines = [captions.stripped(line) for line in text_files.read_lines(path, option)]
    prompts = [
        line[1:] if _ESCAPED.match(line) else line for line in lines if line and not line.startswith("#")
    ]
    comments = sum(line.startswith("#") for line in lines)
    if not prompts:
        only = f" but for {_counted(comments, 'line')} that begin with #" if comments else ""
        raise ValueError(f"{option} must hold one prompt per line; {path} is empty{only}.")
    skipped = f"; {_counted(comments, 'comment')} skipped" if comments else ""
    return prompts, f"{path}: {_counted(len(prompts), 'prompt')}{skipped}."


def _counted(num: int, what: str) -> str:
    return f"{num} {what}{'s' if num != 1 else ''}"
