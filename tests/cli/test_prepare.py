"""The command prepare: its options, its one line for every error, and what is already there."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imagen_jax.prepare import shapes, text_files
from tests.prepare.conftest import picture, read, save

TEXT = 200  # bytes of a file, line or field


# ---- limits as options ----


def test_limits_are_options(tmp_path, load_script, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_BYTES", TEXT)
    script = load_script("prepare_data")
    made = script.settings(
        script.Options(tmp_path / "out", tmp_path / "in", max_captions=2, max_caption_bytes=9)
    )
    assert (made["max_captions"], made["max_caption_bytes"], made["max_page_bytes"]) == (2, 9, 2**29)
    for options, message in (
        ({"max_captions": 0}, "--max-captions must be at least 1; got 0"),
        ({"max_image_bytes": 2**28 + 1}, r"--max-image-bytes must be in \[1, 268435456\]"),
        (
            {"max_pixels": 2**27 + 1},
            r"--max-pixels must be in \[1, 134217728\]; got 134217729",
        ),
        ({"max_seconds": 61.0}, r"--max-seconds must be in \[1, 60.0\]; got 61.0"),
        ({"max_seconds": float("nan")}, "--max-seconds must be a finite number; got nan"),
        ({"max_pixels": 0}, r"--max-pixels must be in \[1, 134217728\]; got 0"),
        (
            {"max_caption_bytes": TEXT + 1},
            r"--max-caption-bytes must be in \[1, 200\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            script.settings(
                script.Options(tmp_path / "out", tmp_path / "in", **{"max_caption_bytes": 9} | options)
            )


SCRIPT = Path(__file__).parents[2] / "scripts" / "prepare_data.py"


def run(*arguments):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.run(command, capture_output=True, text=True, env=env)


@pytest.mark.slow
def test_command_line(tmp_path):
    root, output = tmp_path / "in", tmp_path / "out"
    save(root / "a.png", picture())
    done = run("--input", root, "--output", output)
    assert done.returncode == 0 and done.stdout.endswith(f"Wrote {output}: 1 train records.\n"), done.stderr
    before = {p.name: p.read_bytes() for p in output.iterdir()}
    again = run("--input", root, "--output", output, "--max-size", "99")
    assert again.returncode == 2 and again.stderr.count("\n") == 1
    assert again.stderr.startswith("prepare_data.py: ") and "must be free; got a data set" in again.stderr
    assert {p.name: p.read_bytes() for p in output.iterdir()} == before


def test_shapes_twice(tmp_path, load_script, capsys):
    script = load_script("prepare_data")
    options = {
        "output": tmp_path / "out",
        "shapes": "single",
        "num_train": 5,
        "num_validation": 3,
        "num_test": 0,
    }
    script.main(script.Options(**options))
    script.main(script.Options(**options))
    assert capsys.readouterr().out.endswith("is already there, nothing to do.\n")
    with pytest.raises(ValueError, match="must be free; got a data set"):
        script.main(script.Options(**options | {"num_train": 6}))
    examples = read(tmp_path / "out")
    made = list(shapes.examples("train", "single", 5))
    for example, shape in zip(examples, made, strict=True):
        np.testing.assert_array_equal(example["image"], shape["image"])
        assert (example["caption"], example["claims"]) == (shape["caption"], shape["claims"])
    assert len(read(tmp_path / "out", "validation")) == 3
