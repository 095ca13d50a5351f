"""What --help shows: every option, described, those first that must be given."""

import dataclasses

import pytest

from imagen_jax import config
from imagen_jax.cli import options
from tests.cli.conftest import help_of, one_line


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["train.py"], ["--workdir STR", "--optim.learning-rate FLOAT", "(default: 0.0001)", "With --preset NAME"]),
        (["train.py", "--preset", "quickstart"], ["--optim.learning-rate", "(default: 0.0025)", "--network.attention"]),
        (["train.py", "--preset", "quickstart", "--stage", "sr64"], ["--network.stem-channels", "(default: 32)"]),
        (["train.py", "--preset", "imagenet"], ["--preset must be one of base64", "--run.num-steps"]),
        (["train.py", "--preset", "quickstart", "--stage", "sr9"], ["--stage must be one of base, sr64"]),
        (["train.py", "--preset"], ["With --preset NAME"]),
        (["plan.py"], ["--topology", "None: the local devices. (default: None)"]),
        (["plan.py", "--preset", "base64:2b"], ["--network.channels", "Channels at each resolution."]),
        (["embed_text.py"], ["--store", "--text.encoder"]),
        (["embed_text.py", "--preset", "shapes"], ["Tokens of each caption that reach the network", "(default: 40)"]),
        (["prepare_data.py"], ["--input", "(default 2048). --min-size", "not a usual one. (default: None)"]),
        (["sample.py"], ["layout. (default: ) --pretrained", "no single one. Existing pictures stay."]),
    ],
)  # fmt: skip
def test_help_needs_no_other_option(monkeypatch, capsys, arguments, lines):
    out = one_line(help_of(monkeypatch, capsys, *arguments))
    for line in lines:
        assert line in out


@pytest.mark.parametrize("script", ["sample.py", "sweep.py", "evaluate.py"])
def test_help_begins_with_what_must_be_given(monkeypatch, capsys, script):
    out = help_of(monkeypatch, capsys, script)
    out = out[out.index("show this help") :]
    assert out.index(" --workdir ") < out.index(" --seed ") < out.index(" --sampler ")


CONFIGS = [
    part for part in vars(config).values() if dataclasses.is_dataclass(part) and isinstance(part, type)
]
SCRIPTS = (
    "train", "plan", "benchmark", "embed_text", "sample", "evaluate", "sweep", "prepare_data", "train_recogniser",
)  # fmt: skip


@pytest.mark.parametrize("kind", [*CONFIGS, *SCRIPTS], ids=lambda kind: getattr(kind, "__name__", kind))
def test_every_option_is_described(load_script, kind):
    kind = load_script(kind).Options if isinstance(kind, str) else kind
    described = options.docstrings(kind)
    own = {name for name in kind.__annotations__ if not dataclasses.is_dataclass(getattr(kind, name, None))}
    assert set(described) == own
    for name, text in described.items():
        assert len(text.split()) > 2 and text.endswith("."), name


@pytest.mark.parametrize("script", ["sample.py", "train.py"])
def test_comments_do_not_leak_into_help(monkeypatch, capsys, script):
    for line in help_of(monkeypatch, capsys, script).splitlines():
        for comment in ("Range", "Inputs", "Guidance", "Levels of noise", "50", "80", "import", "---"):
            assert not line.strip().startswith(f"{comment} (default")
