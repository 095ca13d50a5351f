"""Exported cascades on the Hugging Face hub, by names such as hf://OWNER/NAME and hf://OWNER/NAME@REVISION.

Pipelines of DeepFloyd IF, in diffusers' layout, are downloaded too.
"""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from imagen_jax.checks import Verbatim, error, require
from imagen_jax.stage_dir import exported, if_pipeline

SCHEME = "hf://"
_NAME = r"[\w-][\w.-]*/[\w-][\w.-]*"
_FILES = ("*.json", "*.safetensors", "*.md", "NOTICE", "LICENSE")
_PIPELINE_FILES = (if_pipeline.INDEX, "scheduler/*.json", "image_noising_scheduler/*.json", "tokenizer/*")
# Weights of a pipeline, without pickles: in float16, or where the hub has them in one type alone, in that.
_HALF = ("config.json", "*.index.fp16.json", "*.fp16*.safetensors")
_ANY = ("config.json", "*.index.json", "*.safetensors")


@functools.cache
def download(place: str, option: str) -> Path:
    """Return the directory of a cascade or a pipeline on the hub, in the hub's local cache; download it if necessary.

    Args:
      place: hf://OWNER/NAME or hf://OWNER/NAME@REVISION, a branch, a tag or a commit.
      option: how the user named it, such as "--pretrained".

    Raises:
      ValueError: the name is none, or the hub does not give such a cascade.
    """
    named = re.fullmatch(rf"{SCHEME}({_NAME})(?:@([\w][\w./-]*))?", place)
    require(named is not None, option, f"be {SCHEME}OWNER/NAME or {SCHEME}OWNER/NAME@REVISION", place)
    from huggingface_hub import snapshot_download

    fetch = lambda **which: Path(snapshot_download(named[1], revision=named[2], **which))
    try:
        directory = fetch(allow_patterns=_FILES, ignore_patterns="*/*")
        if (directory / if_pipeline.INDEX).is_file():
            return _pipeline(fetch)
    except Exception as failed:  # the hub's client has no common base class for its errors
        got = Verbatim(f"{place}, which it does not give ({_reason(failed)})")
        fix = _fix(failed, named[1], ", or give the directory of a copy")
        raise error(option, "be a cascade on the Hugging Face hub", got, fix) from failed
    require(exported.read(directory) is not None, option, "be a cascade that imagen-jax export wrote", place)
    return directory


def _pipeline(fetch: Callable[..., Path]) -> Path:
    """Return the directory of a pipeline on the hub after downloading it by `fetch`."""
    directory = fetch(allow_patterns=_PIPELINE_FILES)
    for part in ("unet", "text_encoder"):
        for names in (_HALF, _ANY):
            fetch(allow_patterns=[f"{part}/{name}" for name in names])
            if any((directory / part).glob("*.safetensors")):
                break
    return directory


def check_name(repo: str, option: str) -> None:
    """Check the name of a repository to push to, and that this machine is logged in, without asking the hub.

    Raises:
      ValueError: the name is none, or there is no token.
    """
    require(re.fullmatch(_NAME, repo) is not None, option, "be OWNER/NAME, a repository on the Hugging Face hub", repo)
    from huggingface_hub import get_token

    fix = "run hf auth login, or set HF_TOKEN"
    require(get_token() is not None, option, "be used with a token of the Hugging Face hub", Verbatim("none"), fix)


def create(repo: str, option: str) -> None:
    """Make a repository on the hub, public unless it exists and is private.

    Raises:
      ValueError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    with _refusals(repo, option):
        HfApi().create_repo(repo, exist_ok=True)


def push(directory: Path, repo: str, option: str) -> str:
    """Upload an exported cascade as one commit, in which weight files that it does not have are removed.

    Args:
      directory: of the cascade.
      repo: OWNER/NAME, which exists.
      option: how the user named it, such as "--push-to-hub".

    Returns:
      the address of the commit.

    Raises:
      ValueError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    message = "Cascade exported by imagen_jax"
    with _refusals(repo, option):
        return HfApi().upload_folder(
            repo_id=repo, folder_path=directory, commit_message=message, allow_patterns=_FILES,
            delete_patterns="*.safetensors",
        ).commit_url  # fmt: skip


@contextlib.contextmanager
def _refusals(repo: str, option: str) -> Iterator[None]:
    """Context in which errors of the hub's client become a ValueError of one line."""
    try:
        yield
    except Exception as failed:
        got = Verbatim(f"{repo}, which it refuses ({_reason(failed)})")
        raise error(option, "be a repository to write to", got, _fix(failed, repo)) from failed


def _reason(failed: Exception) -> str:
    """Return an error of the hub's client in a few words."""
    status = getattr(getattr(failed, "response", None), "status_code", None)
    words = {401: "not logged in", 403: "no permission", 404: "no such repository, revision or file"}
    if status in words:
        return f"{words[status]}, status {status}"
    lines = [line for line in str(failed).splitlines() if line.strip()]
    return " ".join((lines or [type(failed).__name__])[0].split())[:200].rstrip(".")


def _fix(failed: Exception, repo: str, otherwise: str = "") -> str:
    from huggingface_hub.errors import GatedRepoError

    status = getattr(getattr(failed, "response", None), "status_code", None)
    if isinstance(failed, GatedRepoError):
        return f"accept its licence at https://huggingface.co/{repo}, and log in with hf auth login"
    if status in (401, 403, 404):
        return "correct the name, or log in with hf auth login"
    return f"check the network{otherwise}"
