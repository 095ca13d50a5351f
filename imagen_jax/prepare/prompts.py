"""Prompts in a text file, one per line."""

from __future__ import annotations

import re
from pathlib import Path

from imagen_jax.checks import Verbatim, require
from imagen_jax.prepare import captions, text_files

_ESCAPED = re.compile(r"\\+#")


def read(path: Path, option: str = "--prompts-file") -> tuple[list[str], str]:
    r"""Read a file of prompts: one per line, without the blanks around it.

    Empty lines and comments, which begin with #, are skipped. A prompt that begins with # is written with a backslash
    before it, `\#1 in a row` (and one that begins with `\#` with two).

    Returns:
      (prompts, one line with their number and what was skipped).

    Raises:
      ValueError: the file is not text, or has no prompt; `option` names it.
    """
    lines = [captions.stripped(line) for line in text_files.read_lines(path, option)]
    prompts = [
        line[1:] if _ESCAPED.match(line) else line for line in lines if line and not line.startswith("#")
    ]
    comments = sum(line.startswith("#") for line in lines)
    got = Verbatim(f"only {_counted(comments, 'line')} that begin with #" if comments else "an empty file")
    require(bool(prompts), f"{option} {path}", "hold one prompt per line", got, "write a prompt into it")
    skipped = f"; {_counted(comments, 'comment')} skipped" if comments else ""
    return prompts, f"{path}: {_counted(len(prompts), 'prompt')}{skipped}."


def _counted(num: int, what: str) -> str:
    return f"{num} {what}{'s' if num != 1 else ''}"
