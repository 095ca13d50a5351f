"""Locations that a user names: local paths, and directories in buckets as gs:// and s3:// URLs."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any, NewType

from imagen_jax import checks
from imagen_jax.checks import Verbatim, require

Location = NewType("Location", str)  # type of options that take paths and URLs; type Path takes local paths alone
# The library through which etils.epath reaches a bucket, also the name of the extra that installs it.
_LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}
_OTHER = ("abfs", "abfss", "az", "file", "ftp", "gcs", "hdfs", "hf", "http", "https", "memory", "s3a", "s3n", "ssh")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/*)")


def location(place: str | os.PathLike, name: str) -> Path:
    """Return a local directory, or one of a bucket, as a path that can be joined, listed and read.

    Args:
      place: a path, or a URL such as gs://bucket/run or s3://bucket/run.
      name: of the option or argument, for messages.

    Returns:
      a `pathlib.Path`, or for a URL an `etils.epath.Path`, which has the same methods.

    Raises:
      ValueError: the scheme is another, the URL has no bucket or a typing error, or the bucket's library is not
        installed.
    """
    text = _text(place, name, "be a path, or a URL of gs:// or s3://")
    scheme, slashes = _scheme(text)
    if scheme is None:
        return Path(text)
    near = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}.get(scheme.lower(), scheme.lower())
    fix = f"write {near}://" if near in _LIBRARIES else "give a path, also of a mounted bucket"
    fix = "name what is on the Hugging Face hub with --pretrained" if near == "hf" else fix
    require(scheme in _LIBRARIES, name, "be a path, or a URL of gs:// or s3://", text, fix)
    bucket, _, rest = text[len(scheme) + 1 + len(slashes) :].partition("/")
    # pathlib removes a slash, and a mistyped URL is not meant as a local directory.
    fix = f"write {scheme}://{bucket}{f'/{rest}' if rest else ''}{', as a str' * isinstance(place, Path)}"
    require(len(slashes) == 2, name, f"have two slashes after {scheme}:", text, fix)
    is_bucket = bool(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]+", bucket))
    rule = "name a bucket, of at least two letters, digits, dots, hyphens or underscores"
    require(is_bucket, name, rule, text, f"write {scheme}://BUCKET/DIRECTORY")
    is_plain = not ({".", ".."} & set(rest.split("/")) or re.search(r"[?#*\[\]\s\\]", rest))
    rule = "name a directory of the bucket without '..', '.', spaces or any of ?#*[]\\"
    require(is_plain, name, rule, text)
    library = _LIBRARIES[scheme]
    is_there = importlib.util.find_spec(library) is not None
    fix = f"pip install {library}, or 'imagen_jax[{scheme}]'"
    require(is_there, library, f"be installed for {scheme}://", Verbatim(f"{text!r} as {name}"), fix)
    import fsspec.config
    from etils import epath

    # Cached listings would miss what TensorStore and other processes write.
    for protocol in (scheme, "gcs"):
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    return epath.Path(text)


def local(place: str | os.PathLike, name: str) -> Path:
    """Return a local path.

    Raises:
      ValueError: it is a URL, which as a path would create a directory named after its scheme.
    """
    text = _text(place, name, "be a path of this machine")
    scheme, _ = _scheme(text)
    if scheme is None:
        return Path(text)
    fix = "give the path without file://" if scheme.lower() == "file" else "copy or mount what it names"
    if scheme.lower() in _LIBRARIES:
        fix = "mount the bucket (docs/buckets.md) and give that path"
    raise checks.error(name, "be a path of this machine", text, fix)


def _text(place: str | os.PathLike, name: str, rule: str) -> str:
    is_path = isinstance(place, str | os.PathLike)
    require(is_path and isinstance(os.fspath(place), str), name, rule, place)
    return checks.text(name, os.fspath(place))


def is_remote(path: str | os.PathLike) -> bool:
    """Whether a path that `location` returned lies in a bucket."""
    return os.fspath(path).startswith(tuple(f"{scheme}://" for scheme in _LIBRARIES))


def kvstore(url: str) -> dict[str, Any]:
    """Return TensorStore's description of a URL in a bucket, with the environment variables that s3fs reads too."""
    scheme, _, rest = url.partition("://")
    bucket, _, path = rest.partition("/")
    spec = {"driver": "gcs" if scheme == "gs" else scheme, "bucket": bucket, "path": path}
    if scheme == "s3":
        given = {
            "endpoint": os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"),
            "aws_region": os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        }
        if given["endpoint"] and not given["aws_region"]:
            given["aws_region"] = "us-east-1"  # servers other than Amazon's have none
        spec |= {name: value.rstrip("/") for name, value in given.items() if value}
        if os.environ.get("AWS_ACCESS_KEY_ID"):  # else the SDK logs at length which files it lacks
            spec["aws_credentials"] = {"type": "environment"}
    return spec


def _scheme(text: str) -> tuple[str, str] | tuple[None, None]:
    """Return the scheme of a URL, even a mistyped one, and the slashes after it; (None, None) for a local path."""
    match = _SCHEME.match(text)
    if match is None:
        return None, None
    scheme, slashes = match.groups()
    is_known = scheme.lower() in (*_LIBRARIES, *_OTHER)
    return (scheme, slashes) if is_known or len(slashes) > 0 else (None, None)
