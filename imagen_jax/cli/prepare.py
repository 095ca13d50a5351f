"""Make a data set for training from captioned pictures, from icon sets, or from the built-in shapes.

  imagen-jax prepare --input photos --output datasets/photos
  imagen-jax prepare --icons noto.tgz fxemoji.tgz --output datasets/icons
  imagen-jax prepare --shapes single --output datasets/shapes

The input is recognised by its files: a folder of pictures with captions (a .txt beside each
picture, each line a caption, or a field of a .json, or one table at the top: captions.jsonl,
captions.csv, metadata.jsonl or metadata.csv), .tar archives as WebDataset and img2dataset write them,
.parquet tables with pictures in them, or a TFDS data set. What cannot be used is skipped and listed,
with the reason, in quarantine.jsonl in the data set's directory. After an interruption the same command continues. See
docs/data.md.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from imagen_jax import checks, progress
from imagen_jax.checks import Verbatim, require
from imagen_jax.cli import parsing
from imagen_jax.data import checksums, opening, sources
from imagen_jax.prepare import origins, output, parts, text_files
from imagen_jax.prepare.icons import plan as icons
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.pictures import Rules
from imagen_jax.storage import files

_LOGGER = logging.getLogger(__name__)

SETTINGS = "prepared.json"  # in the data set's directory: how it was made
NOTICE = "NOTICE"  # beside it: attributions that the licences of the input ask for


@dataclasses.dataclass(frozen=True)
class Options:
    output: Path
    """Directory of the new data set; an existing one is never overwritten."""
    input: Path | None = None
    """Folder of pictures, .tar or .parquet files, searched with its sub-folders, or of a TFDS data set;
    or one .tar or .parquet file; or the name of a TFDS data set that is on this machine, as NAME/CONFIG:VERSION."""
    shapes: Literal["single", "full", "relations", "halves"] | None = None
    """Instead of --input: pictures of captioned shapes, made by the program: one object; all kinds of scenes; of these
    the relations of two objects; or such relations with an object in each half of the picture, to learn them from."""
    icons: tuple[Path, ...] = ()
    """Instead of --input: icon sets, each a .tgz file of `npm pack @iconify-json/NAME` or a directory of its files."""
    name: str | None = None
    """Name of the data set; by default made from the name of the output directory."""
    num_workers: int | None = None
    """Processes that do the work (default: one for each core); the result does not depend on it."""
    image_key: str | None = None
    """With --input: column, feature or, in archives, extension of the pictures, if not a usual one."""
    caption_key: str | None = None
    """With --input: column, feature, field of .json or, in archives, extension of the captions, if not a usual one."""
    max_size: int | None = None
    """With --input: longest side in pixels; larger pictures are reduced (default 2048)."""
    min_size: int | None = None
    """With --input: shortest side in pixels; smaller pictures are left out (default 64)."""
    max_image_bytes: int | None = None
    """With --input: bytes of an encoded picture; larger ones are left out (default and at most 2^28)."""
    max_pixels: int | None = None
    """With --input: pixels of a picture, width times height; larger ones are left out (default and at most 2^27)."""
    max_seconds: float | None = None
    """With --input: seconds of processor time to decode a picture; one that takes longer is left out (default and at
    most 60)."""
    max_caption_bytes: int | None = None
    """With --input: bytes of a caption in UTF-8; a picture with a longer one is left out (default 2^20, at most
    2^23)."""
    max_captions: int | None = None
    """With --input: captions of a picture; one with more is left out (default 256)."""
    max_page_bytes: int | None = None
    """With --input: bytes that reading a page of pictures of a .parquet table may take; row groups with larger ones
    are left out (default 2^29)."""
    validation_fraction: float | None = None
    """With --input: share of pictures for validation, chosen by their bytes (default 0). With --icons: as
    --unseen-pairs-fraction, for validation while training (default 0.03)."""
    test_fraction: float | None = None
    """With --input: share of pictures for testing, chosen by their bytes (default 0)."""
    num_train: int | None = None
    """With --shapes: number of training pictures (default 20000)."""
    num_validation: int | None = None
    """With --shapes: number of validation pictures (default 1000)."""
    num_test: int | None = None
    """With --shapes: number of test pictures, of combinations not in training (default 1000)."""
    keywords: Path | None = None
    """With --icons: names and keywords for captions, of `npm pack emojibase-data`: the .tgz file or a directory."""
    size: int | None = None
    """With --icons: side of the square pictures, in pixels (default 64)."""
    background: str | None = None
    """With --icons: colour under the transparent icons: white, black, grey or #rrggbb (default white)."""
    skin_tones: bool = False
    """With --icons: also people and hands in each of five skin tones, not only in the neutral one."""
    accept_licence: tuple[str, ...] = ()
    """With --icons: SPDX identifiers of further licences that are accepted, such as CC-BY-4.0."""
    unseen_subjects_fraction: float | None = None
    """With --icons: share of subjects that are held out in all styles (default 0.06)."""
    unseen_pairs_fraction: float | None = None
    """With --icons: share of pairs of style and subject that are held out, of subjects that training shows in three
    other styles (default 0.08)."""


LIMITS = {f"max_{name}": value for name, value in dataclasses.asdict(Limits()).items()}
PICTURES = {
    "max_size": 2048,
    "min_size": 64,
    **LIMITS,
    "validation_fraction": 0.0,
    "test_fraction": 0.0,
    "image_key": None,
    "caption_key": None,
}
MAX_SHAPES = 10**7  # of a split; some 10 GB
MAX_WORKERS = 2**12
SHAPES = {"num_train": 20000, "num_validation": 1000, "num_test": 1000}
ICONS = {"keywords": None, **dataclasses.asdict(icons.Choices())}
SOURCES = {"input": PICTURES, "shapes": SHAPES, "icons": ICONS}  # the options that go with each


def settings(options: Options) -> dict:
    """Check the options; return them with their defaults filled in, as stored with the data set."""
    given = [source for source in SOURCES if getattr(options, source)]
    got = Verbatim(" and ".join(f"--{source}" for source in given) or "none")
    fix = "give --input FOLDER, --icons FILES or --shapes single|full"
    require(len(given) == 1, "One of --input, --icons and --shapes", "be given", got, fix)
    used = SOURCES[given[0]]
    for key in dict.fromkeys(key for keys in SOURCES.values() for key in keys if key not in used):
        value = getattr(options, key)
        rule = f"be left out with --{given[0]}, where it has no effect"
        require(value == getattr(Options, key), _flag(key), rule, value)
    if options.num_workers is not None:
        checks.whole("--num-workers", options.num_workers, 1, MAX_WORKERS)
    name = options.name or output.name_of(options.output)
    values = {key: getattr(options, key) for key in used}
    values = {key: used[key] if value is None else value for key, value in values.items()}
    if options.icons:
        values |= {
            "background": icon_choices(values).colour,
            "accept_licence": list(values["accept_licence"]),
        }
        values["keywords"] = values["keywords"] and str(values["keywords"])
        return {"icons": [str(path) for path in options.icons], "name": name, **values}
    if options.shapes:
        for key, value in values.items():
            checks.whole(_flag(key), value, int(key == "num_train"), MAX_SHAPES)
        return {"shapes": options.shapes, "name": name, **values}
    rule = f"be from 1 to --max-size {values['max_size']}"
    require(1 <= values["min_size"] <= values["max_size"], "--min-size", rule, values["min_size"])
    highest = {
        "max_image_bytes": opening.MAX_BYTES,
        "max_pixels": opening.MAX_PIXELS,
        "max_seconds": opening.MAX_SECONDS,
        "max_caption_bytes": text_files.MAX_BYTES,
    }  # of what training reads, or waits for
    for key in LIMITS:
        checks.number(_flag(key), values[key], f"[1, {highest.get(key, math.inf)}]")
    _rules(values)  # checks the fractions
    return {"input": str(options.input), "name": name, **values}


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _rules(values: dict) -> Rules:
    limits = Limits(**{key.removeprefix("max_"): values[key] for key in LIMITS})
    return Rules(
        *(values[key] for key in ("min_size", "max_size", "validation_fraction", "test_fraction")), limits
    )


def already_there(directory: Path, wanted: dict) -> bool:
    """Whether the directory holds a data set with all these settings; raise ValueError if it is damaged."""
    if not sources.is_data_set(directory) or not (directory / SETTINGS).is_file():
        return False
    checksums.check(directory, (*checksums.METADATA, parts.QUARANTINE))
    try:
        made = json.loads((directory / SETTINGS).read_text())
    except ValueError:
        return False
    # Earlier data sets have no limits in their settings.
    return isinstance(made, dict) and all(
        made.get(key, LIMITS.get(key)) == value for key, value in wanted.items()
    )


def plan_shapes(made: dict) -> parts.Plan:
    nums = {split: made[f"num_{split}"] for split in ("train", "validation", "test")}
    nums = {split: num for split, num in nums.items() if num}
    return parts.Plan(
        job=origins.Shapes(made["shapes"]),
        parts=origins.shape_parts(nums),
        splits=tuple(nums),
        keys=("image", "caption", "claims"),
        name=made["name"],
        description=f"Captioned shapes, part {made['shapes']!r}, generated by imagen_jax.",
        settings=made,
    )


def plan_pictures(made: dict, directory: Path) -> parts.Plan:
    """Return the plan of an input; raise ValueError if it cannot be prepared."""
    root, rules = Path(made["input"]), _rules(made)
    is_inside = root.is_dir() and Path(os.path.realpath(directory)).is_relative_to(root.resolve())
    rule = f"be outside of --input {root}"
    require(not is_inside, "--output", rule, Verbatim(directory), "choose another place")
    survey = origins.survey(root, made["image_key"], made["caption_key"], rules.limits)
    if survey.splits is not None:
        rule = f"be 0 with a TFDS data set, whose splits are kept ({', '.join(survey.splits)})"
        got = Verbatim(f"{rules.validation_fraction} and {rules.test_fraction}")
        names = "--validation-fraction and --test-fraction"
        require(len(rules.splits()) == 1, names, rule, got, "remove them")
    return parts.Plan(
        job=origins.Pictures(survey.origin, rules),
        parts=survey.parts,
        splits=survey.splits or rules.splits(),
        keys=("image", "caption"),
        name=made["name"],
        description=f"Captioned pictures from {root.resolve().name!r}.",
        settings=_without_path(made) | {"files": survey.stamp},
        left_out=survey.left_out,
        some_empty=survey.splits is not None,
    )


def plan_icons(made: dict) -> parts.Plan:
    keywords = Path(made["keywords"]) if made["keywords"] else None
    plan = icons.plan([Path(path) for path in made["icons"]], keywords, made["name"], icon_choices(made))
    return dataclasses.replace(plan, settings=_without_path(made) | plan.settings)


def icon_choices(values: dict) -> icons.Choices:
    """Return what of icon sets becomes which records; raise ValueError if an option is out of range."""
    return icons.Choices(**{key: values[key] for key in ICONS if key != "keywords"})


def _without_path(made: dict) -> dict:
    """Return the settings without the paths of the input, which may be renamed later."""
    return {key: value for key, value in made.items() if key not in ("input", "icons", "keywords")}


def shown(done: Iterable, total: int, before: int) -> Iterable:
    """Return `done` with a progress bar."""
    if before:
        _LOGGER.info(f"Continuing: {before} of {total} parts are done.")
    return progress.over(done, total, "parts", "preparing", done=before)


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(options: Options) -> None:
    made = settings(options)
    directory = options.output
    parts.tidy(directory)
    perhaps_there = already_there(directory, _without_path(made))
    if not perhaps_there:
        sources.check_free(directory)
        output.resolved(directory)  # checks before any work that the data set can be written
    if options.icons:
        plan = plan_icons(made)
    else:
        plan = plan_shapes(made) if options.shapes else plan_pictures(made, directory)
    if already_there(directory, plan.settings):
        _LOGGER.info(f"{directory} is already there, nothing to do.")
        return
    got = Verbatim(
        f"{directory} with a data set of these settings, made before the files of the input changed"
    )
    fix = "choose another directory, or delete this one first"
    require(not perhaps_there, "--output", "be free", got, fix)

    def finish(unfinished: Path) -> None:
        files.write_json(unfinished / SETTINGS, made | plan.settings, indent=2)
        if plan.notice:
            files.write(unfinished / NOTICE, plan.notice)

    num_workers = options.num_workers or num_cores()
    counts, left_out = parts.write(plan, directory, num_workers=num_workers, finish=finish, progress=shown)
    if left_out.counts:
        where = directory / parts.QUARANTINE
        _LOGGER.info(f"Left out {left_out.counts.total()}: {left_out.summary()}; listed in {where}.")
    records = ", ".join(f"{num} {split}" for split, num in counts.items())
    _LOGGER.info(f"Wrote {directory}: {records} records.")


def parse(args: list[str]) -> Options:
    return parsing.parse(Options, __doc__, args)
