"""Adapters of one stage as two small files in the layout of PEFT, to share and to apply to a cascade.

    adapter_model.safetensors    base_model.model.MODULE.lora_A.weight and .lora_B.weight of each adapted kernel
    adapter_config.json          r, lora_alpha (the scale times r), target_modules, base_model_name_or_path

MODULE is the path of a module with dots; of DeepFloyd IF's networks it is diffusers' name, so that PEFT applies the
files to them there too, and a kernel that diffusers has in two parts has two adapters. For a kernel [R, C] the shapes
are [r, R] and [C, r]; for that of a convolution [KH, KW, I, C] they are [r, I, KH, KW] and [C, r, 1, 1]. The metadata
of the safetensors file name the stage and hold some entries of each kernel that the adapters were trained on, by which
another base is told from the same one rounded for an export.
"""

import dataclasses
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from flax.traverse_util import flatten_dict, unflatten_dict

from imagen_jax import checks, stage
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import StageConfig, read_json
from imagen_jax.models import lora
from imagen_jax.stage_dir.adapter_modules import Place, places
from imagen_jax.storage import directories, files, input_files, locations

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
OPTION = "--adapter"
_KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
_TYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_MAX_BYTES = 2**32
_NUM_ENTRIES = 16  # of each kernel
_TOLERANCE = 0.05  # relative; int8 rounds a kernel by about 0.01, other trainings differ by far more
_FIX = "get the files again, or export the adapter again"
# Kinds of adapters that PEFT has besides these: field of adapter_config.json -> values that are none of them.
_PLAIN = {"peft_type": ("LORA",), "bias": ("none", None)} | dict.fromkeys(
    ("use_dora", "use_rslora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "exclude_modules"),
    (False, None, {}, []),
)


@dataclasses.dataclass(frozen=True)
class Adapter:
    """The content of an adapter's files.

    Attributes:
      path: of the safetensors file.
      sha256: of both files, in hex digits.
      scale: factor on the adapters.
      base_name: what the adapters were trained on, in words.
      weights: (lora_A.weight, lora_B.weight) by module, float32.
      stage: name of the stage, None if the file does not tell.
      base: some entries of the base's kernels by module; see `entries`.
    """

    path: Path
    sha256: str
    scale: float
    base_name: str
    weights: dict[str, tuple[np.ndarray, np.ndarray]]
    stage: str | None
    base: dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Fitted:
    """An adapter for one stage of a cascade: the stage's name, what `lora.merge` takes, and the user's weight."""

    adapter: Adapter
    stage: str
    adapters: Any
    weight: float


def entries(module: str, kernel: Any) -> list[float]:
    """Return some entries of a kernel; their positions depend on the module's name and the kernel's size alone."""
    positions = np.random.default_rng(zlib.crc32(module.encode())).integers(kernel.size, size=_NUM_ENTRIES)
    return [float(f"{value:.6g}") for value in np.asarray(kernel.reshape(-1)[positions], np.float64)]


def write(directory: Path, config: StageConfig, adapters: Any, base: Any) -> None:
    """Write the adapters of a stage to a new directory.

    Args:
      directory: that `directories.check_new` accepts.
      config: of the stage, with its `lora` and `init_from`.
      adapters: as from `lora.init`.
      base: parameters that they were trained on.

    Raises:
      OSError: writing failed; nothing is left.
    """
    kernels, found, tensors, samples = flatten_dict(base), lora.pairs(adapters), {}, {}
    # The last name of a kernel is that of the files.
    named = {(place.path, place.part): (name, place) for name, place in places(config, base).items()}
    for name, place in named.values():
        if place.path not in found:
            continue
        kernel, (a, b) = kernels[place.path], (np.asarray(each, np.float32) for each in found[place.path])
        a, b = a.T, place.columns(b).T  # [r, R], [C, r]
        if kernel.ndim == 4 or place.is_pointwise:
            a = a.reshape(len(a), *(kernel.shape[:3] if kernel.ndim == 4 else (1, 1, -1))).transpose(0, 3, 1, 2)
            b = b[:, :, None, None]
        tensors |= {f"base_model.model.{name}.lora_{kind}.weight": value for kind, value in (("A", a), ("B", b))}
        samples[name] = entries(name, place.columns(kernel))
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    described = {
        "peft_type": "LORA",
        "r": config.lora.rank,
        "lora_alpha": config.lora.scale * config.lora.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(samples),
        "base_model_name_or_path": config.init_from,
        "inference_mode": True,
    }
    metadata = {"format": "pt", "stage": config.name, "base": json.dumps(samples)}
    with directories.writing_new(directory) as folder:
        files.write(folder / WEIGHTS, safetensors.numpy.save(tensors, metadata))
        files.write_json(folder / CONFIG, described, indent=2)


def read(place: str | Path) -> Adapter:
    """Return the adapter at `place`: a safetensors file with adapter_config.json beside it, or the directory of both.

    Raises:
      ValueError: one line; a file is missing or damaged, or holds another kind of adapter.
    """
    path = locations.location(place, OPTION)
    path = path if path.name.endswith(".safetensors") else path / WEIGHTS
    content, described = _content(path), _content(path.with_name(CONFIG))
    try:
        stored, metadata = dict(safetensors.deserialize(content)), _metadata(content)
    except safetensors.SafetensorError as error:
        got = Verbatim(f"an error ({' '.join(str(error).split())[:200]})")
        raise checks.error(f"{OPTION} {path}", "be a safetensors file", got, _FIX) from error
    rank, scale, base_name = _described(path.with_name(CONFIG))
    weights, rule = {}, "hold lora_A.weight and lora_B.weight of base_model.model.MODULE"
    for name, entry in stored.items():
        match = _KEY.fullmatch(name)
        require(match is not None, f"{OPTION} {path}", rule, name, "take a LoRA adapter")
        require(entry["dtype"] in _TYPES, f"{OPTION} {path}: {name}", f"be {', '.join(_TYPES)}", entry["dtype"])
        value = np.frombuffer(entry["data"], _TYPES[entry["dtype"]]).reshape(entry["shape"]).astype(np.float32)
        require(bool(np.isfinite(value).all()), f"{OPTION} {path}: {name}", "be finite", Verbatim("NaN or infinity"))
        found = value.shape[0 if match[2] == "A" else 1] if value.ndim in (2, 4) else Verbatim(f"shape {value.shape}")
        name = f"{OPTION} {path}: {name}"
        require(found == rank, name, f"have the rank r of {CONFIG}, {rank}", found, _FIX)
        weights.setdefault(match[1], {})[match[2]] = value
    alone = [module for module, pair in weights.items() if len(pair) < 2]
    require(bool(weights) and not alone, f"{OPTION} {path}", rule, Verbatim(f"one of them for {alone[:3]}"), _FIX)
    return Adapter(
        path=path,
        sha256=hashlib.sha256(content + described).hexdigest(),
        scale=scale,
        base_name=base_name,
        weights={module: (pair["A"], pair["B"]) for module, pair in weights.items()},
        stage=metadata.get("stage"),
        base=_base(f"{OPTION} {path}: base", metadata.get("base"), weights),
    )


def _content(path: Path) -> bytes:
    """Return the bytes of a file of an adapter."""
    what = f"an adapter, {WEIGHTS} with {CONFIG} beside it, or the directory of both"
    if not locations.is_remote(path):
        return input_files.read_given(OPTION, path, _MAX_BYTES, what, "export one with imagen-jax export --adapter")
    require(files.exists(path), OPTION, f"be {what}", Verbatim(f"{path}, which does not exist"))
    with files.one_line_errors(path, "read"):
        return path.read_bytes()


def _metadata(content: bytes) -> dict[str, str]:
    """Return the metadata of a safetensors file that can be read."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]).get("__metadata__") or {}


def _base(name: str, text: str | None, modules: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return the entries of the base's kernels by module; none for a file without this text of our own."""
    if text is None:
        return {}
    rule = f"be JSON with {_NUM_ENTRIES} numbers for each module"
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise checks.error(name, rule, text, _FIX) from error
    is_whole = isinstance(found, dict) and set(found) == set(modules) and all(
        isinstance(each, list) and len(each) == _NUM_ENTRIES and all(map(checks.is_finite, each))
        for each in found.values()
    )
    require(is_whole, name, rule, text, _FIX)
    return found


def _described(file: Path) -> tuple[int, float, str]:
    """Return (r, lora_alpha / r, base_model_name_or_path) of adapter_config.json."""
    data, where = read_json(file), f"{OPTION} {file}"
    checks.instance(where, data, dict, "a JSON object")
    for name, plain in _PLAIN.items():
        value = data.get(name)
        require(value in plain, f"{where}: {name}", f"be {plain[0]}", value, "take a plain LoRA adapter")
    # PEFT takes what these begin with from the base, so that they are no adapters of the base itself.
    changed = str(data.get("init_lora_weights")).startswith(("pissa", "olora", "corda", "loftq"))
    rule, got = "leave the base as it is", data.get("init_lora_weights")
    require(not changed, f"{where}: init_lora_weights", rule, got, "convert it by PEFT to a plain LoRA adapter")
    rank = checks.whole(f"{where}: r", data.get("r"), 1, 2**16)
    alpha = checks.number(f"{where}: lora_alpha", data.get("lora_alpha"))
    return rank, alpha / rank, str(data.get("base_model_name_or_path") or "a base without a name")


_Network = tuple[Mapping[str, Place], Mapping[lora.Path, Any]]  # names of modules, shapes of parameters


def fit(configs: Sequence[StageConfig], weights: Mapping[str | Path, float]) -> list[Fitted]:
    """Return the adapters of files for the stages of a cascade, before any parameters are loaded.

    Args:
      configs: of the stages.
      weights: by the path of each adapter, as for `read`, the factor on it.

    Raises:
      ValueError: one line; an adapter cannot be read, or is of another network.
    """
    if not weights:
        return []
    networks = {}
    for config in configs:
        shapes = jax.eval_shape(lambda config=config: stage.init(config, jax.random.key(0)))
        networks[config.name] = (places(config, shapes), flatten_dict(shapes))
    found = []
    for place, weight in weights.items():
        adapter = read(place)
        weight = checks.number(f"{OPTION} {place}: weight", weight, "[-1000, 1000]")
        name = _stage_of(adapter, networks)
        found.append(Fitted(adapter, name, _fitted(adapter, name, *networks[name]), weight))
    return found


def _stage_of(adapter: Adapter, networks: Mapping[str, _Network]) -> str:
    """Return the name of the stage that an adapter is for; of one that does not tell, the only one that it fits."""
    names, where = ", ".join(networks), f"{OPTION} {adapter.path}"
    fix = f"take an adapter for this cascade; this one is for {adapter.base_name}"
    if adapter.stage is not None:
        got = Verbatim(f"one of stage {adapter.stage}")
        require(adapter.stage in networks, where, f"be for one of the stages that run, {names}", got, fix)
        return adapter.stage
    fitting, misfits = [], []
    for name, network in networks.items():
        try:
            _fitted(adapter, name, *network)
            fitting.append(name)
        except ValueError as misfit:
            misfits.append(misfit)
    if not fitting:
        raise misfits[0]
    got, fix = Verbatim(f"one that fits {' and '.join(fitting)}"), "choose the stages that run by --start and --stop"
    require(len(fitting) == 1, where, f"fit one of the stages that run, {names}", got, fix)
    return fitting[0]


def _fitted(adapter: Adapter, name: str, modules: Mapping[str, Place], shapes: Mapping[lora.Path, Any]) -> Any:
    """Return an adapter as a nested dict for a network of these modules and parameters."""
    found, fix = {}, f"take an adapter for this cascade; this one is for {adapter.base_name}"
    for module, (a, b) in adapter.weights.items():
        where = f"{OPTION} {adapter.path}: {module}"
        require(module in modules, where, f"be a module of stage {name}", Verbatim("another one"), fix)
        place = modules[module]
        *rows, columns = shapes[place.path].shape
        columns //= place.parts
        if len(rows) == 3 or place.is_pointwise:
            *window, channels = rows if len(rows) == 3 else (1, 1, *rows)
            wanted = ((len(a), channels, *window), (columns, len(a), 1, 1))
        else:
            wanted = ((len(a), *rows), (columns, len(a)))
        got = Verbatim(f"{a.shape} and {b.shape}")
        require((a.shape, b.shape) == wanted, where, f"have the shapes {wanted[0]} and {wanted[1]}", got, fix)
        a = a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T
        found.setdefault(place.path, []).append((place, a.reshape(-1, a.shape[-1]), b.reshape(columns, -1).T))
    made = {}
    for path, parts in found.items():
        made[*path[:-1], "a"], made[*path[:-1], "b"] = _joined(parts, shapes[path].shape[-1])
    return unflatten_dict(made)


def _joined(parts: Sequence[tuple[Place, np.ndarray, np.ndarray]], columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (a [R, n r], b [n r, C]) of n adapters, each a [R, r] and b for its own part of the columns."""
    if len(parts) == 1 and parts[0][0].parts == 1:
        return parts[0][1:]
    rows = []
    for place, _, b in parts:
        row = np.zeros((len(b), columns), np.float32)
        place.columns(row)[:] = b
        rows.append(row)
    return np.concatenate([a for _, a, _ in parts], axis=1), np.concatenate(rows)


def apply(stages: Sequence[stage.Stage], fitted: Sequence[Fitted]) -> tuple[stage.Stage, ...]:
    """Return the stages of a cascade with adapters merged into their parameters.

    Raises:
      ValueError: one line; an adapter was trained on other parameters.
    """
    by_name = {each.config.name: each for each in stages}
    for each in fitted:
        _check_base(each.adapter, by_name[each.stage].config, by_name[each.stage].params)
    for each in fitted:
        own, weight = by_name[each.stage], each.weight * each.adapter.scale
        by_name[each.stage] = own.replace(params=lora.merge(own.params, each.adapters, weight))
    return tuple(by_name.values())


def _check_base(adapter: Adapter, config: StageConfig, params: Any) -> None:
    """Raise a ValueError if the kernels differ from the recorded ones by more than the rounding of an export."""
    kernels, modules = flatten_dict(params), places(config, params)
    kernel = lambda place: place.columns(kernels[place.path])
    pairs = [(values, entries(module, kernel(modules[module]))) for module, values in adapter.base.items()]
    if not pairs:
        return
    before, now = np.asarray(pairs, np.float64).transpose(1, 0, 2)
    distance = np.linalg.norm(now - before) / max(np.linalg.norm(before), 1e-30)
    rule = f"be of the parameters of stage {config.name} that are loaded"
    got = Verbatim(f"one of {adapter.base_name}, whose kernels differ by {100 * distance:.3g} %")
    require(distance <= _TOLERANCE, f"{OPTION} {adapter.path}", rule, got, "load the cascade that it was trained on")
