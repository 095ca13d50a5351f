"""Requests that make a recorded picture again."""

import os
from collections.abc import Mapping
from pathlib import Path

from imagen_jax import checks
from imagen_jax.generate import records
from imagen_jax.generate.records import MAX_BATCH, InputFile, Record
from imagen_jax.generate.request import Request
from imagen_jax.stage_dir import adapter_file, loading, pretrained
from imagen_jax.storage import files, locations


def repeating(
    record: Record,
    *,
    workdir: loading.Places | None = None,
    inputs: Mapping[str, Path] | None = None,
    adapters: Mapping[str, float] | None = None,
    text_encoder: str | None = None,
    batch_size: int | None = None,
) -> Request:
    """Return the request that makes a recorded picture again, as its job number `record.row`.

    All rows of the batch are this picture, so that the same program computes it in the same row: it is equal to the
    bit. With another `batch_size` it is the first job, and equal to rounding.

    Args:
      record: of the picture.
      workdir: of the cascade, if it has been moved, as `load_cascade` takes it.
      inputs: by name, the files that have been moved.
      adapters: whose keys are the places of adapters that have been moved.
      text_encoder: the place of the text encoder, if it has been moved.
      batch_size: rows of the batch; None: as recorded.

    Raises:
      ValueError: one line; a file does not exist, or is not the one that was used.
    """
    rows = record.batch_size if batch_size is None else batch_size
    names = list(record.sampling)
    workdir = _cascade(record.workdir, workdir)
    return Request(
        workdir=workdir,
        jobs=[(record.prompt, record.seed)] * checks.whole("--batch-size", rows, 1, MAX_BATCH),
        sampling=record.sampling,
        checkpoints=record.checkpoints,
        adapters=_recorded_adapters(record, adapters or {}),
        encoder=record.encoder,
        text_encoder=text_encoder or record.text_encoder,
        text_dtype=record.text_dtype,
        start=names[0],
        stop=names[-1],
        size=record.size,
        negative=record.negative,
        inputs=_recorded_inputs(record, inputs or {}),
        outpaint=record.outpaint,
        batch_size=rows,
        fsdp=record.fsdp,
    )


def _cascade(recorded: str | tuple[str, ...], given: loading.Places | None) -> loading.Places:
    """Return the place of a recorded cascade, or of what it has been moved to."""
    if isinstance(recorded, tuple) and given is None:
        return tuple(_cascade(place, None) for place in recorded)
    if isinstance(given, list | tuple):
        return tuple(_cascade("", place) for place in given)
    if given is None and pretrained.is_name(recorded):
        return recorded
    if pretrained.is_name(given):
        return given
    return _place(recorded, given, "--workdir", "the directory of the cascade")


def _recorded_inputs(record: Record, given: Mapping[str, Path]) -> dict[str, Path]:
    """Return the paths of the files that the picture was made from, by name.

    Raises:
      ValueError: a file does not exist, or is not the one that was used.
    """
    found = {}
    for name in records.INPUTS:
        option, recorded = records.option(name), getattr(record, name)
        if recorded is None:
            if name in given:
                raise ValueError(
                    f"{option} must be left out: the picture was made without; got {given[name]}."
                )
            continue
        path = _place(recorded.path, given.get(name), option, "the file that the picture was made from")
        sha256 = InputFile.of(name, path).sha256
        if sha256 != recorded.sha256:
            raise ValueError(
                f"{option} must be the file that the picture was made from, of sha256 {recorded.sha256[:16]}...; "
                f"{path} has {sha256[:16]}...: give {option} with the place of the right one."
            )
        found[name] = path
    return found


def _recorded_adapters(record: Record, given: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of the adapters that were applied by where they are now, in their order.

    Raises:
      ValueError: one does not exist, has changed, or was not applied; or a weight is given.
    """
    option, found = adapter_file.OPTION, {}
    known = {adapter_file.read(path).sha256: path for path in given}
    for recorded in record.adapters:
        moved = known.pop(recorded.sha256, None)
        path = _place(recorded.path, moved, option, "the adapter that the picture was made with")
        sha256 = adapter_file.read(path).sha256
        rule = f"be the adapter of sha256 {recorded.sha256[:16]}..."
        got, fix = checks.Verbatim(f"{path} of {sha256[:16]}..."), f"give {option} with the place of the right one"
        checks.require(sha256 == recorded.sha256, option, rule, got, fix)
        found[os.fspath(path)] = recorded.weight
    others = [*known.values(), *(f"{path}:{weight:g}" for path, weight in given.items() if weight != 1)]
    got = checks.Verbatim(", ".join(others))
    checks.require(not others, option, "name adapters of the picture without weights", got, "leave it out")
    return found


def _place(recorded: str, given: str | Path | None, option: str, what: str) -> Path:
    path = locations.location(recorded, option) if given is None else given
    if not files.exists(path):
        raise ValueError(f"{option} must be {what}; {path} does not exist: give {option} with its place now.")
    return path
