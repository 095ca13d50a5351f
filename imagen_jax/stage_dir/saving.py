"""Save stages and cascades: in the layout that training writes, or as one small directory to share.

`save_stage` and `save_cascade` write checkpoints from all processes of a run; `save_pretrained` writes the layout of
`exported` from one. Both hold averaged parameters alone.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import imagen_jax
from imagen_jax import checks, processes, stage
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import to_dict
from imagen_jax.config.validation import validate, validate_cascade
from imagen_jax.stage_dir import (
    checkpoint,
    checkpoint_files,
    exported,
    exported_params,
    model_card,
    weight_file,
)
from imagen_jax.stage_dir.directory import CONFIG_FILE, absolute, lock_directory
from imagen_jax.stage_dir.exported import Exported, Weights
from imagen_jax.storage import directories, files


def save_stage(saved: stage.Stage, directory: str | Path, *, step: int = 0) -> None:
    """Save a stage, to be read by `load_stage`, imagen-jax sample and imagen-jax train --init-from.

    The directory holds a stage once everything is written: config.json comes last. Every process of a run calls it.

    Args:
      saved: a stage whose parameters have the shapes and types of `stage.init`, as `load_stage` returns them.
      directory: path or URL of gs:// or s3://, without a stage.
      step: number of the checkpoint, such as the training step that the parameters are of.

    Raises:
      ValueError: the parameters do not fit the configuration; the directory holds a stage, is in use by a run, or
        cannot be written to.
      OSError: writing failed. The directory holds no stage then.
    """
    checks.whole("step", step)
    processes.check_on_all_processes(lambda: _check_stage(saved, "stage"))
    processes.check_on_all_processes(lambda: _check_free(absolute(directory), "directory", saved))
    _write(saved, absolute(directory), step)


def save_cascade(stages: Sequence[stage.Stage], directory: str | Path) -> None:
    """Save the stages of a cascade, to be read by `load_cascade`, imagen-jax sample and imagen-jax train --init-from.

    Each stage is saved as by `save_stage`, in the sub-directory of its name. Every process of a run calls it.

    Args:
      stages: of one cascade, base first.
      directory: path or URL of gs:// or s3://, without stages.

    Raises:
      ValueError: as for `save_stage`, or the stages do not follow each other; nothing is written.
      OSError: writing failed. The directory holds the stages that were complete before.
    """

    def check() -> None:
        _check_cascade(stages)
        place = absolute(directory)
        with files.one_line_errors(place, "listed"):
            found = sorted(path.parent.name for path in place.glob(f"*/{CONFIG_FILE}"))
        fix = "name another directory, or remove them"
        require(not found, "directory", "hold no stages yet", Verbatim(f"{place} with {', '.join(found)}"), fix)
        for each in stages:
            _check_free(place / each.config.name, "directory", each)

    processes.check_on_all_processes(check)
    for each in stages:
        _write(each, absolute(directory) / each.config.name, 0)


def save_pretrained(
    stages: Sequence[stage.Stage],
    directory: str | Path,
    *,
    dtype: str = "bfloat16",
    difference_to: str | None = None,
    card: model_card.Card | None = None,
    steps: Mapping[str, int] | None = None,
    notice: str | None = None,
    licence: str | None = None,
) -> None:
    """Export a trained cascade to one directory, to be shared and read by `load_cascade` and --pretrained.

    The directory appears once everything is written; in a bucket config.json, which comes last, completes it. In a run
    of several processes one of them calls it.

    Args:
      stages: of one cascade, base first, with parameters that this process can read whole.
      directory: a new one: path or URL of gs:// or s3://.
      dtype: "float32" loses nothing; "bfloat16" rounds parameters to 8 bits of precision; "int8" rounds each entry of
        a kernel to at most 1/254 of the largest magnitude in its output channel and keeps all else in float32; "int4"
        is for a cascade that was trained from another one: kernels as differences of 4 bits, and nothing of a parameter
        that is the same.
      difference_to: with "int4" the name of that cascade, with stages of these names and networks; who reads the export
        must have it.
      card: what its authors say of it, for README.md.
      steps: of training, by the name of the stage.
      notice, licence: texts of the files NOTICE and LICENSE.

    Raises:
      ValueError: the stages do not follow each other, their parameters do not fit, or the directory holds something,
        cannot be written to or has too little space; nothing is written.
      OSError: writing failed; nothing is left.
    """
    _check_cascade(stages)
    checks.choice("dtype", dtype, weight_file.DTYPES)
    configs = tuple(each.config for each in stages)
    check_difference(dtype, difference_to)
    difference, others = None, {}
    if difference_to is not None:
        difference, others = exported_params.difference(difference_to, configs, "difference_to")
    card = model_card.Card() if card is None else checks.instance("card", card, model_card.Card, "a Card")
    steps = {} if steps is None else checks.instance("steps", steps, Mapping, "a mapping from names of stages")
    for name in steps:
        checks.choice("steps", name, [config.name for config in configs])
    steps = {name: checks.whole(f"steps[{name!r}]", number) for name, number in steps.items()}
    texts = {"NOTICE": notice, "LICENSE": licence}
    texts = {name: checks.text(name, text) for name, text in texts.items() if text is not None}
    for leaf in jax.tree.leaves([each.params for each in stages]):
        is_whole = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        fix = "save with save_stage, and export what load_stage returns"
        require(is_whole, "params", "be on the devices of this process", Verbatim("arrays of several"), fix)
    place = absolute(directory)
    directories.check_new(place, "directory", needed=bytes_needed(stages, dtype))
    weights, summaries = {}, []
    with directories.writing_new(place) as folder:
        for each in stages:
            name, content = each.config.name, weight_file.encode(each.params, dtype, others.get(each.config.name))
            files.write(folder / exported.file_name(name), content)
            weights[name] = Weights(hashlib.sha256(content).hexdigest(), len(content), steps.get(name))
            summaries.append(model_card.Summary.of(each.params, len(content), steps.get(name)))
        kind = dtype if difference is None else f"{dtype}, differences to the cascade `{difference.cascade}`"
        texts[exported.CARD_FILE] = model_card.markdown(card, configs, summaries, kind)
        for name, text in texts.items():
            files.write(folder / name, text)
        versions = {"imagen_jax": imagen_jax.__version__}
        described = Exported(configs, weights, dtype, versions, card, difference)
        files.write_json(folder / CONFIG_FILE, described.to_dict(), indent=2)


def check_difference(dtype: str, difference_to: str | None, option: str = "difference_to") -> None:
    """Raise a ValueError unless `dtype` and `difference_to`, which the user named as `option`, go together."""
    rule = "be given with dtype int4, which holds differences, and with no other"
    fix = "name the cascade that training began from" if difference_to is None else "choose int4"
    require((dtype == "int4") == (difference_to is not None), option, rule, difference_to, fix)


def bytes_needed(stages: Sequence[stage.Stage], dtype: str) -> int:
    """Return about how many bytes the export of stages takes.

    Args:
      stages: with parameters, or their shapes.
      dtype: of the weight files.
    """
    size = sum(leaf.size for each in stages for leaf in jax.tree.leaves(each.params))
    return size * {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 1}[dtype] + 2**20


def _check_cascade(stages: Any) -> None:
    is_sequence = isinstance(stages, list | tuple) and len(stages) > 0
    require(is_sequence, "stages", "be a sequence of at least one Stage", stages)
    for i, each in enumerate(stages):
        _check_stage(each, f"stages[{i}]")
    validate_cascade(tuple(each.config for each in stages))


def _check_stage(saved: Any, name: str) -> None:
    checks.instance(name, saved, stage.Stage, "a Stage")
    validate(saved.config)
    wanted = _by_path(jax.eval_shape(lambda: stage.init(saved.config, jax.random.key(0))))
    found = _by_path(saved.params)
    for path in sorted(wanted.keys() | found.keys()):
        want, got = wanted.get(path), found.get(path)
        is_array = isinstance(got, jax.Array | np.ndarray) and want is not None
        holds = is_array and (got.shape, got.dtype) == (want.shape, want.dtype)
        rule = f"be {want.dtype} {list(want.shape)}" if want is not None else "not be there"
        fix = f"give the parameters of a network of the configuration of stage {saved.config.name}"
        told = Verbatim("nothing") if got is None else got
        require(holds, f"{name}.params{path}", rule, told, fix)


def _by_path(tree: Any) -> dict[str, Any]:
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _check_free(directory: Path, name: str, saved: stage.Stage) -> None:
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(saved.params))
    files.check_directory(directory, name, needed=needed)
    is_free = not files.exists(directory / CONFIG_FILE) and not checkpoint_files.list_steps(directory)
    fix = "name another directory, or remove that one"
    require(is_free, name, "hold no stage yet", Verbatim(str(directory)), fix)


def _write(saved: stage.Stage, directory: Path, step: int) -> None:
    params = saved.params
    if jax.process_count() > 1:  # Orbax writes arrays of all processes, and host arrays of process 0
        params = jax.tree.map(lambda leaf: leaf if not _is_local(leaf) else np.asarray(leaf), params)
    with lock_directory(directory):
        with checkpoint.Checkpoints(directory, saved.config) as checkpoints:
            checkpoints.save_ema_params(step, params)
        processes.check_on_all_processes(lambda: _write_config(directory, saved))


def _is_local(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and leaf.is_fully_addressable


def _write_config(directory: Path, saved: stage.Stage) -> None:
    if jax.process_index() == 0:
        files.write_json(directory / CONFIG_FILE, to_dict(saved.config), indent=2)
