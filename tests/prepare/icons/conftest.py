import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CIRCLE = '<circle cx="8" cy="8" r="6" fill="{}"/>'
INFO = {
    "name": "Tiny",
    "author": {"name": "Ada", "url": "https://ada.example"},
    "license": {"spdx": "MIT", "url": "https://ada.example/licence"},
}


@pytest.fixture
def write_set(tmp_path) -> Callable[..., Path]:
    """write(prefix, {name: body or icon}, chars={code: name}, info={}, aliases={}) -> the directory of an icon set."""

    def write(prefix="tiny", icons=None, chars=None, info=INFO, aliases=None, **more) -> Path:
        folder = tmp_path / prefix
        folder.mkdir(exist_ok=True)
        icons = {"tiger": CIRCLE.format("orange")} if icons is None else icons
        icons = {name: {"body": icon} if isinstance(icon, str) else icon for name, icon in icons.items()}
        content = {"prefix": prefix, "width": 16, "height": 16, "icons": icons, "aliases": aliases or {}}
        files = {"icons": content | more, "info": info, "chars": chars, "package": {"version": "1.2.3"}}
        for name, value in files.items():
            if value is not None:
                (folder / f"{name}.json").write_text(json.dumps(value))
        return folder

    return write


@pytest.fixture
def packed() -> Callable[[Path], Path]:
    """packed(directory) -> the .tgz file that `npm pack` would make of it."""

    def pack(folder: Path) -> Path:
        target = folder.with_suffix(".tgz")
        command = ["tar", "czf", target, "-C", folder, "--transform", "s,^\\.,package,", "."]
        subprocess.run(command, check=True)
        return target

    return pack


@pytest.fixture
def write_keywords(tmp_path) -> Callable[..., Path]:
    """write([entry of en/data.json, ...]) -> the directory of a package emojibase-data."""

    def write(entries) -> Path:
        folder = tmp_path / "emojibase"
        (folder / "en").mkdir(parents=True, exist_ok=True)
        (folder / "en" / "data.json").write_text(json.dumps(entries))
        package = {"name": "emojibase-data", "version": "17.0.0", "license": "MIT"}
        (folder / "package.json").write_text(json.dumps(package))
        return folder

    return write
