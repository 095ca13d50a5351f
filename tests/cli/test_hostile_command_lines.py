"""Random command lines, made from the types of the options with hostile values: one line and status 2, or status 0.

IMAGEN_JAX_COMMAND_LINES sets how many are tried. None of them finds any data, so that none comes to heavy work.
"""

import os
import runpy
import sys
import typing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagen_jax.cli import options
from imagen_jax.config import presets
from tests.conftest import ROOT

NUM = int(os.environ.get("IMAGEN_JAX_COMMAND_LINES", "40"))
# What each is always given, so that it ends before it reads or writes anything; {tmp}/file is a file, not a folder.
SCRIPTS = {
    "train": [
        "--preset",
        "quickstart",
        "--stage",
        "base",
        "--workdir",
        "{tmp}/file/run",
        "--data.path",
        "{tmp}/none",
    ],
    "embed_text": ["--preset", "quickstart", "--data.path", "{tmp}/none"],
    "plan": ["--preset", "quickstart", "--quick", "--topology", "v5e:2x2"],
    "benchmark": ["--preset", "quickstart", "--output", "{tmp}/file/train.json"],
    "sample": ["--workdir", "{tmp}/none", "--prompts", "a red star"],
    "evaluate": ["--workdir", "{tmp}/none", "--data", "{tmp}/none"],
    "sweep": ["--workdir", "{tmp}/none", "--prompts-file", "{tmp}/file"],
    "train_recogniser": ["--data", "{tmp}/none", "--output", "{tmp}/file/recogniser"],
    "prepare_data": ["--input", "{tmp}/none", "--output", "{tmp}/file/data"],
}
TEXTS = [
    "", " ", "None", "True", "nan", "inf", "-inf", "-1", "0", "1", "3", "1e23", "-0.0", "0.5", "1e-320", "1_0", "٣",
    "é", "⭐", "\u202eabc", "\ud800", "\n", "a b", "--", "-", "-x", "../..", "~", "[1, 2]", "{}", "$(id)", "{tmp}",
    "{tmp}/file", "{tmp}/none", "/dev/null", "/proc/self/mem", "gs://", "s3://b/k", "file:///x", "train[:0]", "train[",
    "quickstart:x,y", "base", "sr64", "v5e:0x0", "v9:1", "ddim", "cfg++", "cosine", "9" * 30, "9" * 5000, "x" * 300,
]  # fmt: skip
NUMBERS = st.one_of(
    st.integers(-3, 70), st.sampled_from([2**31, 2**63, -(2**63), 10**23]), st.floats(), st.floats(0, 1)
)
PRESETS = {
    "empty.py": "",
    "syntax.py": "def",
    "exits.py": "import sys; sys.exit(3)",
    "none.py": "def get_config(): return None",
    "raises.py": "1 / 0",
    "words.py": "def get_config(): return ('a',)",
    "binary.py": "\x00\xff",
    "variant.py": "def get_config(size: int = 3): return ()",
    "endless.py": "def get_config(): return get_config()",
}


def known(script: str, load_script) -> dict[str, options.Field]:
    found = options.fields(load_script(script).Options)
    if script in ("train", "embed_text", "plan", "benchmark"):
        found |= options.fields(presets.load_preset("quickstart")[0])
    return found


def values(field: options.Field) -> st.SearchStrategy:
    """Words for an option: often of its type, so that what comes after the types is reached."""
    choices = [str(choice) for choice in _literals(field.hint)]
    word = st.one_of(st.sampled_from(choices or TEXTS), st.sampled_from(TEXTS), NUMBERS.map(str))
    if field.is_flag:
        return st.lists(word, max_size=1) if choices else st.one_of(st.just([]), st.lists(word, max_size=1))
    return st.lists(word, min_size=0, max_size=3) if "tuple" in str(field.hint) else word.map(lambda w: [w])


def _literals(hint) -> list:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return [choice for part in typing.get_args(hint) for choice in _literals(part)]


@st.composite
def command_lines(draw, known_by_script):
    script = draw(st.sampled_from(sorted(SCRIPTS)))
    fields = known_by_script[script]
    base = list(SCRIPTS[script])
    if script in ("train", "embed_text", "plan", "benchmark") and draw(st.integers(0, 5)) == 0:
        base[1] = "{tmp}/presets/" + draw(st.sampled_from(sorted(PRESETS)))
    given_already = {word[2:] for word in base if word.startswith("--")}
    names = draw(
        st.lists(st.sampled_from(sorted(set(fields) - given_already)), min_size=1, max_size=3, unique=True)
    )
    args = base
    for name in names:
        spelt = draw(
            st.sampled_from([name] * 8 + [name[:-1], name.replace("-", "_"), "no-" + name, name + "é", "x"])
        )
        words = draw(values(fields[name]))
        args = [*args, f"--{spelt}", *words]
    if draw(st.integers(0, 15)) == 0:
        args = args[draw(st.integers(0, len(args))) :]  # what is required may be missing
        if script in ("prepare_data", "train", "benchmark"):  # whatever that leaves must not begin to work
            args = [*args, "--help"]
    return script, args


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "file").write_text("a prompt\n")
    (folder / "presets").mkdir()
    for name, content in PRESETS.items():
        (folder / "presets" / name).write_bytes(content.encode("latin-1"))
    return folder


def run(script: str, args: list[str], place: Path) -> tuple[int, str]:
    """Exit status and stderr."""
    path = str(ROOT / "scripts" / f"{script}.py")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", [path, *(word.replace("{tmp}", str(place)) for word in args)])
        patch.setattr(sys, "dont_write_bytecode", True)  # beside the presets
        patch.chdir(place)
        runpy.run_path(path, run_name="__main__")
    return stop.value.code or 0


@pytest.mark.slow
def test_hostile_command_lines(place, load_script, capsys):
    known_by_script = {script: known(script, load_script) for script in SCRIPTS}
    before = sorted(place.rglob("*"))

    @settings(
        max_examples=NUM,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(command_lines(known_by_script))
    def attack(line):
        script, args = line
        code = run(script, args, place)
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if "warning:" not in line]
        assert code in ((0, 1, 2) if script == "plan" else (0, 2)), (line, code)  # plan: 1, it does not fit
        assert "Traceback" not in out + err, line
        assert len(lines) == (code == 2), (line, err)
        assert sorted(place.rglob("*")) == before, line

    attack()
