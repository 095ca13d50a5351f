"""Makes a data set for training: from a folder of captioned pictures, or the built-in shapes.

  python scripts/prepare_data.py --input photos --output datasets/photos
  python scripts/prepare_data.py --shapes single --output datasets/shapes

Captions: a .txt beside each picture (each line is a caption), or one table at the top of the
folder (captions.jsonl, captions.csv, metadata.jsonl or metadata.csv with a file and a caption
column). What cannot be used is skipped and listed, with the reason, in quarantine.jsonl in the data
set's directory.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from imagen_jax import cli
from imagen_jax.data import folder, shapes, sources, transforms

SETTINGS = "prepared.json"  # in the data set's directory: how it was made


@dataclasses.dataclass(frozen=True)
class Options:
    output: Path
    """Directory of the new data set; an existing one is never overwritten."""
    input: Path | None = None
    """Folder of pictures with captions; searched with its sub-folders."""
    shapes: Literal["single", "full"] | None = None
    """Instead of --input: pictures of captioned shapes, made by the program."""
    name: str | None = None
    """Name of the data set; by default made from the name of the output directory."""
    max_size: int | None = None
    """With --input: longest side in pixels; larger pictures are reduced (default 2048)."""
    min_size: int | None = None
    """With --input: shortest side in pixels; smaller pictures are left out (default 64)."""
    validation_fraction: float | None = None
    """With --input: share of pictures for validation, chosen by file name (default 0)."""
    test_fraction: float | None = None
    """With --input: share of pictures for testing, chosen by file name (default 0)."""
    num_train: int | None = None
    """With --shapes: number of training pictures (default 20000)."""
    num_validation: int | None = None
    """With --shapes: number of validation pictures (default 1000)."""
    num_test: int | None = None
    """With --shapes: number of test pictures, of combinations not in training (default 1000)."""


FOLDER = {"max_size": 2048, "min_size": 64, "validation_fraction": 0.0, "test_fraction": 0.0}
SHAPES = {"num_train": 20000, "num_validation": 1000, "num_test": 1000}


def settings(options: Options) -> dict:
    """The checked options with their defaults filled in, as stored with the data set."""
    if (options.input is None) == (options.shapes is None):
        raise ValueError("Give either --input FOLDER or --shapes single|full, not both nor none.")
    used, unused = (FOLDER, SHAPES) if options.shapes is None else (SHAPES, FOLDER)
    source = "--input" if options.shapes is None else "--shapes"
    for key in unused:
        if getattr(options, key) is not None:
            raise ValueError(f"--{key.replace('_', '-')} has no effect with {source}; remove it.")
    stem = re.sub(r"[^a-z0-9]+", "_", options.output.resolve().name.lower()).strip("_")
    name = options.name or (stem if stem[:1].isalpha() else f"data_{stem}")
    values = {key: getattr(options, key) for key in used}
    values = {key: used[key] if value is None else value for key, value in values.items()}
    if options.shapes:
        if values["num_train"] < 1 or min(values.values()) < 0:
            raise ValueError(f"--num-train must be at least 1 and the others at least 0; got {values}.")
        return {"shapes": options.shapes, "name": name, **values}
    if not 1 <= values["min_size"] <= values["max_size"]:
        raise ValueError(
            "--min-size must lie in 1..max-size; got "
            f"{values['min_size']} with --max-size {values['max_size']}."
        )
    held_out = values["validation_fraction"] + values["test_fraction"]
    if min(values["validation_fraction"], values["test_fraction"]) < 0 or held_out >= 1:
        raise ValueError(
            "--validation-fraction and --test-fraction must be at least 0 and below 1 together; "
            f"got {values['validation_fraction']} and {values['test_fraction']}."
        )
    return {"input": str(options.input), "name": name, **values}


def already_there(output: Path, wanted: dict) -> bool:
    """Whether the same shapes have been prepared there before."""
    made = output / SETTINGS
    if "shapes" not in wanted or not sources.is_data_set(output) or not made.is_file():
        return False
    return json.loads(made.read_text()) == wanted


def prepare_shapes(output: Path, made: dict) -> dict[str, int]:
    def records(split: str, num: int) -> Iterator[dict]:
        examples = shapes.examples(split, made["shapes"], num)
        for example in progress(examples, split, num):
            yield {
                "image": transforms.encode_png(example["image"]),
                "caption": example["caption"],
                "claims": json.dumps(example["claims"]),
            }

    nums = {split: made[f"num_{split}"] for split in ("train", "validation", "test")}
    return sources.write(
        {split: records(split, num) for split, num in nums.items() if num},
        output,
        name=made["name"],
        description=f"Captioned shapes, part {made['shapes']!r}, generated by imagen_jax.",
        finish=lambda directory: save_settings(directory, made),
    )


def prepare_folder(output: Path, made: dict) -> dict[str, int]:
    root, quarantine = Path(made["input"]), folder.Quarantine()
    if output.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"--output {output} lies inside --input {root}; choose a place outside.")
    by_split = assign(folder.find(root, quarantine), made)
    seen: dict[bytes, str] = {}

    def records(split: str, captions: dict[str, list[str]]) -> Iterator[dict]:
        for file in progress(captions, split, len(captions)):
            one = {file: captions[file]}
            sizes = {"min_size": made["min_size"], "max_size": made["max_size"]}
            yield from folder.records(root, one, split, quarantine, seen, **sizes)

    def finish(directory: Path) -> None:
        save_settings(directory, made)
        quarantine.write(directory / "quarantine.jsonl")

    try:
        counts = sources.write(
            {split: records(split, captions) for split, captions in by_split.items()},
            output,
            name=made["name"],
            description=f"Captioned pictures from the folder {root.resolve().name!r}.",
            finish=finish,
        )
    except ValueError as error:
        if quarantine.rows:
            raise ValueError(f"{error} Left out: {quarantine.summary()}.") from error
        raise
    if quarantine.rows:
        where = output / "quarantine.jsonl"
        print(f"Left out {len(quarantine.rows)}: {quarantine.summary()}; listed in {where}.")
    return counts


def assign(captions: dict[str, list[str]], made: dict) -> dict[str, dict[str, list[str]]]:
    """Shares the pictures among the splits that were asked for."""
    fractions = {"validation": made["validation_fraction"], "test": made["test_fraction"]}
    splits = ["train", *(split for split, fraction in fractions.items() if fraction)]
    by_split = {split: {} for split in splits}
    for file, lines in captions.items():
        split = folder.split_of(file, fractions["validation"], fractions["test"])
        by_split[split][file] = lines
    return by_split


def progress(items: Iterable, split: str, total: int) -> Iterable:
    # disable=None: no bar in logs and pipes
    return tqdm(items, desc=split, total=total, unit=" pictures", leave=False, disable=None)


def save_settings(directory: Path, made: dict) -> None:
    (directory / SETTINGS).write_text(json.dumps(made, indent=2) + "\n")


def main(options: Options) -> None:
    made = settings(options)
    if already_there(options.output, made):
        print(f"{options.output} is already there, nothing to do.")
        return
    sources.check_free(options.output)
    prepare = prepare_shapes if options.shapes else prepare_folder
    counts = prepare(options.output, made)
    records = ", ".join(f"{num} {split}" for split, num in counts.items())
    print(f"Wrote {options.output}: {records} records.")


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__))
