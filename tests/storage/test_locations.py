"""Where a user may point: paths and buckets are told apart, everything else is refused before anything is written."""

import importlib.util
import os
from pathlib import Path

import pytest

from imagen_jax import config, load_cascade, load_stage
from imagen_jax.config import presets, validation
from imagen_jax.storage import locations
from imagen_jax.training import loop

REMOTE = ["s3://b1", "s3://bucket/run", "s3://bucket/a/b-c_d.e/", "gs://bucket/run", "s3://my.bucket-1/r"]
LOCAL = ["run", "/tmp/run", "runs/12:30", "a:b", "d/gs:/b", "~/run", "data-2024:1", "..", "C:", "base64:2b,paper"]
# what is typed -> what the line says
WRONG = {
    "gs:/b/run": "write gs://b/run",
    "gs:b/run": "write gs://b/run",
    "s3:b": "write s3://b.",
    "s3:///b/run": "write s3://b/run",
    "s3:/": "write s3://",
    "s3://": "write s3://BUCKET/DIRECTORY",
    "gs:///": "two slashes after gs:",
    "s3://-/x": "must name a bucket",
    "s3://b u/x": "must name a bucket",
    "S3://b/run": "write s3://",
    "GS://b/run": "write gs://",
    "gcs://b/run": "write gs://",
    "s3a://b/run": "write s3://",
    "http://host/run": "gs:// or s3://",
    "https://host/run": "gs:// or s3://",
    "hdfs://n/run": "gs:// or s3://",
    "file:///tmp/run": "gs:// or s3://",
    "az://c/run": "gs:// or s3://",
    "az:c": "gs:// or s3://",
    "memory://x": "gs:// or s3://",
    "wasb://c@h/run": "gs:// or s3://",
    "x:/y": "gs:// or s3://",
    "s3://bucket/a/../b": "without '..'",
    "s3://bucket/./b": "without '..'",
    "s3://bucket/a b": "spaces",
    "s3://bucket/a?b": "spaces",
    "s3://bucket/*/x": "spaces",
    "s3://bucket/a#b": "spaces",
}


@pytest.fixture
def libraries(monkeypatch):
    """As if both libraries were installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in ("s3fs", "gcsfs") or found(name))


@pytest.mark.parametrize("place", REMOTE)
def test_buckets(libraries, place):
    found = locations.location(place, "--workdir")
    assert locations.is_remote(found) and str(found) == place.rstrip("/")
    assert str(found / "base") == f"{place.rstrip('/')}/base"
    assert str(locations.location(found, "again")) == str(found)
    with pytest.raises(ValueError, match="--output must be a path of this machine; got .*mount the bucket"):
        locations.local(place, "--output")


@pytest.mark.parametrize("place", LOCAL)
def test_paths(place):
    for found in (locations.location(place, "a"), locations.location(Path(place), "a"), locations.local(place, "a")):
        assert found == Path(place) and type(found) is type(Path())


@pytest.mark.parametrize("place", WRONG)
def test_what_is_neither_is_refused(libraries, place):
    with pytest.raises(ValueError) as error:
        locations.location(place, "--workdir")
    assert str(error.value).startswith("--workdir must") and WRONG[place] in str(error.value)
    assert repr(place) in str(error.value)
    with pytest.raises(ValueError, match="--data must be a path of this machine; got"):
        locations.local(place, "--data")


def test_a_url_that_pathlib_has_shortened_is_told_from_a_directory():
    with pytest.raises(ValueError, match=r"write gs://b/run, as a str"):
        locations.location(Path("gs://b/run"), "workdir")


@pytest.mark.parametrize(("scheme", "library"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_a_missing_library_is_named(monkeypatch, scheme, library):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=rf"pip install {library}, or 'imagen_jax\[{scheme}\]'"):
        locations.location(f"{scheme}://bucket/run", "--workdir")


ENDPOINTS = [
    ({}, {}),
    ({"AWS_ENDPOINT_URL": "http://h:1/"}, {"endpoint": "http://h:1", "aws_region": "us-east-1"}),
    ({"AWS_ENDPOINT_URL": "http://h:1", "AWS_ENDPOINT_URL_S3": "http://s:2", "AWS_REGION": "eu"},
     {"endpoint": "http://s:2", "aws_region": "eu"}),
    ({"AWS_DEFAULT_REGION": "ap", "AWS_ACCESS_KEY_ID": "k"},
     {"aws_region": "ap", "aws_credentials": {"type": "environment"}}),
]  # fmt: skip


@pytest.mark.parametrize(("environment", "expected"), ENDPOINTS)
def test_tensorstore_is_sent_where_s3fs_goes(monkeypatch, environment, expected):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert locations.kvstore("s3://b/x/y") == {"driver": "s3", "bucket": "b", "path": "x/y"} | expected
    assert locations.kvstore("gs://b/x") == {"driver": "gcs", "bucket": "b", "path": "x"}


CALLS = {
    "workdir": lambda url: loop.train(config.StageConfig(), url),
    "load_stage": load_stage,
    "load_cascade": load_cascade,
    "preset": presets.load_preset,
    "data.path": lambda url: validation.validate(
        config.StageConfig(data=config.DataConfig(path=url), text=config.TextConfig(encoder="t", width=8))
    ),
    "text.encoder": lambda url: validation.validate(config.StageConfig(text=config.TextConfig(encoder=url, width=8))),
}


@pytest.mark.parametrize("url", ["gs:/b/x", "hdfs://n/x", "http://h/x.py", "az://c/x"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_functions_refuse_urls_before_anything_is_written(tmp_path, monkeypatch, call, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"must .*; got '{url}'"):
        call(url)
    assert os.listdir(tmp_path) == []
