"""README and docs/ against the code: every Python snippet is run, every command line is parsed, every name exists."""

import ast
import configparser
import dataclasses
import importlib
import inspect
import io
import itertools
import json
import re
import runpy
import shlex
import sys
import textwrap
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import imagen_jax
from imagen_jax import TextEncoder, config, sample_stage, stage
from imagen_jax.cli import logs, parsing
from imagen_jax.cli import program as cli
from imagen_jax.cli.commands import COMMANDS
from imagen_jax.cli.sampling_options import SamplingOptions
from imagen_jax.config import distilled
from imagen_jax.config.presets import load_preset
from imagen_jax.config.validation import validate
from imagen_jax.data import transforms
from imagen_jax.diffusion import samplers, schedules
from imagen_jax.evaluation import METRICS, sweep
from imagen_jax.models.conditioning import conditioning_images
from imagen_jax.models.layers import cached
from imagen_jax.planning import targets
from imagen_jax.prepare import output, parts, shapes
from imagen_jax.prepare.records import write_records
from imagen_jax.sampling.plan import sampling_by_stage
from imagen_jax.stage_dir import checkpoint
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.structs import TextCond, TrainState
from tests.conftest import ROOT, TINY_BERT
from tests.deepfloyd_models import TINY_IF

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)


class Block(NamedTuple):
    """A fenced block: its language, text and first line."""

    language: str
    text: str
    line: int


def blocks(path, *languages):
    text = path.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2], text[: found.start()].count("\n") + 2)
        for found in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if found[1] in languages
    ]


def prose(path):
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def in_code(path):
    """What stands between backticks in the prose."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(path))]


# --- Python ---------------------------------------------------------------------------------------


class OneLayer(nn.Module):
    """Stands for the networks: the same inputs and output, and next to nothing to compile."""

    out_channels: int

    @nn.compact
    def __call__(self, z_t, logsnr_t, cond, *, train=False):
        def of_text():
            weight = cond.text.mask[..., None] / cond.text.mask.sum(axis=1)[:, None, None]
            return nn.Dense(self.out_channels, name="text")((cond.text.embeddings * weight).sum(axis=1))

        images = conditioning_images(cond)
        h = z_t if images is None else jnp.concatenate([z_t, images], axis=-1)
        return nn.Dense(self.out_channels, name="image")(h) + cached(self, "text", of_text)[:, None, None]


@pytest.fixture
def one_layer(monkeypatch):
    monkeypatch.setattr(stage, "network", lambda settings: OneLayer(settings.image_channels))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory as the quickstart leaves it, with a small text encoder and networks of one layer."""
    root = tmp_path_factory.mktemp("docs")
    text = config.TextConfig(
        encoder=str(TINY_BERT), width=TextEncoder.from_pretrained(TINY_BERT).width, length=24
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stage, "network", lambda settings: OneLayer(settings.image_channels))
        for settings in load_preset("quickstart"):
            few = config.SamplingConfig(steps=2, guidance_scale=2.0, threshold="static")
            settings = dataclasses.replace(settings, text=text, sampling=few)
            params = jax.jit(stage.init, static_argnums=0)(settings, jax.random.key(0))
            directory = root / "runs/quickstart" / settings.name
            stage_dir.write_config(directory, settings)
            with checkpoint.Checkpoints(directory, settings) as saved:
                saved.save(
                    TrainState(jnp.int32(1), params, params, {"none": jnp.zeros(1)}), {"next_index": 1}
                )
    records = [
        {
            "image": transforms.encode_png(e["image"]),
            "caption": e["caption"],
            "claims": json.dumps(e["claims"]),
        }
        for e in shapes.examples("test", "single", 64)
    ]
    write_records({"test": records}, root / "datasets/shapes_single", name="shapes", description="Shapes.")
    return root


@pytest.fixture
def names(place, monkeypatch, one_layer):
    """What snippets take as given: two captions for the stages of the quickstart, and pictures for them."""
    rng = np.random.default_rng(0)
    published = TextEncoder.from_pretrained
    monkeypatch.setattr(  # no network in tests: every name is a small model
        TextEncoder, "from_pretrained", lambda name, *args, **options: published(TINY_BERT, *args, **options)
    )
    monkeypatch.setattr(imagen_jax, "use_compilation_cache", lambda directory=None: None)  # it is the user's
    for registry in (schedules.SCHEDULES, config.NETWORKS, METRICS):
        monkeypatch.setattr(registry, "_entries", dict(registry))
    monkeypatch.chdir(place)
    stages = imagen_jax.load_cascade("runs/quickstart")
    width = stages[0].config.text.width
    picture = lambda size: jnp.asarray(rng.uniform(-1, 1, (2, size, size, 3)), jnp.float32)
    return {
        "sample_cascade": imagen_jax.sample_cascade,
        "stages": stages,
        "text": TextCond(jnp.asarray(rng.normal(size=(2, 24, width)), jnp.float32), jnp.ones((2, 24), bool)),
        "keys": imagen_jax.image_keys(0, 2),
        "small": picture(32),
        "picture": picture(64),
        "mask": jnp.ones((2, 64, 64)),
        "noise": picture(32),
    }


def execute(path, names, together=False):
    """Runs the snippets of a page, by themselves or one after the other; returns what they leave."""
    shared = dict(names)
    for block in blocks(path, "python"):
        code = compile("\n" * (block.line - 1) + block.text, str(path), "exec")
        exec(code, shared if together else dict(names))
    jax.effects_barrier()
    return shared


def traced_cascade(stages, text, keys, **options):
    """`sample_cascade` up to compilation: checks and traces everything, and computes nothing."""
    sample = partial(imagen_jax.sampling.cascade.sample_cascade, **options)
    return jnp.zeros(jax.eval_shape(sample, stages, text, keys).shape)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:caption .* is cut", "ignore:.* captions consist mostly of")
@pytest.mark.parametrize("path", [p for p in PAGES if blocks(p, "python")], ids=lambda path: path.stem)
def test_snippets_run(path, names, capsys, monkeypatch):
    if path.stem == "sampling":  # it samples with some forty settings, each a program of its own
        monkeypatch.setattr(imagen_jax, "sample_cascade", traced_cascade)
        names["sample_cascade"] = traced_cascade
    if path.stem != "library":
        execute(path, names)
        return
    found = execute(path, {}, together=True)
    assert found["estimates"].shape == (8, 8, 32, 32, 3) and found["images"].shape == (8, 32, 32, 3)
    assert "step 8: contrast" in capsys.readouterr().out
    assert int(found["state"].step) == 3 and found["position"]["next_index"] == 3
    assert Path("runs/mine/base/config.json").is_file()
    # What the page says of its sampler: it is of order 2, so that halving the steps quarters the error.
    exact, finer = found["z_1"] / 2, schedules.grid(schedules.make("cosine"), 32)
    x = samplers.sample(found["gaussian"], found["z_1"], finer, sampler=found["Adams"]())
    errors = [float(np.abs(estimate - exact).max()) for estimate in (found["x"], x)]
    assert errors[0] < 0.03 and 3 < errors[0] / errors[1] < 6, errors
    assert schedules.make("steep").logsnr(0.5) == 0


def python_in_shell(path):
    """Programs that a shell command reads from its page: python - <<'END'."""
    for block in blocks(path, "bash"):
        for found in re.finditer(r"python - <<'END'\n(.*?)^END$", block.text, re.DOTALL | re.MULTILINE):
            yield Block("python", found[1], block.line + block.text[: found.start(1)].count("\n"))


@page
def test_programs_in_shell_commands_use_names_that_exist(page):
    """They train, or need torch, so they are not run: what they import of the package exists, and so do its parts."""
    for block in python_in_shell(page):
        tree = ast.parse(textwrap.dedent(block.text))
        known = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "imagen_jax":
                for alias in node.names:
                    known[alias.asname or alias.name] = attribute(node.module, alias.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                owner = known.get(node.value.id)
                assert owner is None or not inspect.ismodule(owner) or hasattr(owner, node.attr), ast.unparse(
                    node
                )
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and callable(known.get(node.func.id))
            ):
                check_call(known[node.func.id], node)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_programs_that_measure_loading_run(dtype, tmp_path, monkeypatch, capsys):
    """With a smaller model than the page's."""
    monkeypatch.setenv("DTYPE", dtype)
    programs = [b.text for b in python_in_shell(ROOT / "docs/text.md") if "large_t5" in b.text]
    assert len(programs) == 2
    small = {"/tmp/large_t5": str(tmp_path / "t5"), "32128": "64", "1536": "16", "4096": "16"}
    small |= {'"num_layers": 20': '"num_layers": 2', '"num_heads": 24': '"num_heads": 2'}
    for text in programs:
        for word, other in small.items():
            text = text.replace(word, other)
        exec(compile(text, "docs/text.md", "exec"), {})
    assert f"{dtype}: files " in capsys.readouterr().out


def attribute(module, name):
    try:
        return importlib.import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return getattr(importlib.import_module(module), name)


def check_call(function, node):
    """Its keyword arguments are some that the function has."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    unknown = {keyword.arg for keyword in node.keywords if keyword.arg} - set(parameters)
    assert not unknown, f"{ast.unparse(node)}: {unknown}"


# --- command lines --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parse():
    """parse(script, arguments): what its own command line makes of them, without running it."""

    @lru_cache
    def once(script, arguments):
        folder = "scripts" if (ROOT / "scripts" / script).exists() else "benchmarks"
        path, parsed = ROOT / folder / script, []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(path), *arguments])
            own = parsing.split_flags(arguments, logs.Options)[0]  # every command takes those of logs
            patch.setattr(cli, "run", lambda main, parse: parsed.append(parse(own)))
            runpy.run_path(str(path), run_name="__main__")
        return parsed[0]

    return lambda script, arguments: once(script, tuple(arguments))


FILE = r"(?:scripts|benchmarks)/\w+\.py"
CALL = rf"\bpython {FILE}|\bimagen-jax \w"


def commands(text):
    """The command lines of a shell text as lists of words: continued lines joined, loops unrolled."""
    text = re.sub(r"<<'?END'?.*?^END$", "", text, flags=re.DOTALL | re.MULTILINE).replace("\\\n", " ")
    loops = re.findall(r"for (\w+) in ([^;\n]+);", text)
    for line in filter(None, text.splitlines()):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        words = list(lexer)
        used = [(name, values.split()) for name, values in loops if f"${name}" in line]
        for chosen in itertools.product(*(values for _, values in used)):
            replaced = words
            for (name, _), value in zip(used, chosen, strict=True):
                replaced = [word.replace(f"${name}", value) for word in replaced]
            for separator, group in itertools.groupby(replaced, lambda word: set(word) <= set("();<>|&")):
                if not separator:
                    yield list(group)


def script_calls(text):
    """(script, arguments) of every `python scripts/NAME.py ...` and `imagen-jax NAME ...`, also inside quotes."""
    for words in commands(text):
        for i, word in enumerate(words):
            before = words[i - 1] if i else ""
            if before == "python" and re.fullmatch(FILE, word):
                yield Path(word).name, words[i + 1 :]
            elif before == "imagen-jax" and word in COMMANDS:
                yield COMMANDS[word][0], words[i + 1 :]
            elif re.search(CALL, word):
                yield from script_calls(word)


def all_calls(path):
    for block in blocks(path, "bash"):
        yield from script_calls(block.text)
    for block in blocks(path, "yaml"):
        for found in re.finditer(r"command: (\[.*?\])", block.text, re.DOTALL):
            words = yaml.safe_load(found[1])
            yield Path(words[1]).name, list(map(str, words[2:]))
    for code in in_code(path):
        if re.match(CALL, code) and " --" in code:  # without options it is the name of a command
            yield from script_calls(code)
    # Tables whose first column holds the options of the script in their head.
    for table in re.finditer(
        r"^\| `scripts/(\w+\.py)` \|.*\n\|[-|: ]+\n((?:\|.*\n)+)", prose(path), re.MULTILINE
    ):
        for row in re.findall(r"^\| `(--[^`]+)` \|", table[2], re.MULTILINE):
            yield table[1], shlex.split(row)


def own_calls():
    """Those that the scripts and presets show themselves, and those of the shell scripts."""
    folders = (("imagen_jax/cli", "*.py"), ("benchmarks", "*.py"), ("configs", "*.py"), ("scripts", "*.sh"))
    for path in [path for folder, pattern in folders for path in sorted((ROOT / folder).glob(pattern))]:
        text = path.read_text()
        if path.suffix == ".py":
            text = ast.get_docstring(ast.parse(text)) or ""
        text = text.replace("\\\n", " ").replace('"$data"', "d").replace('"$run"', "r").replace("$run", "r")
        yield from script_calls("\n".join(line for line in text.splitlines() if re.search(CALL, line)))


def check(parse, script, arguments):
    """The command line has options that exist, with values that its program accepts."""
    # The pipelines in models/ are the reader's own.
    pairs = zip(["", *arguments], arguments, strict=False)
    is_pipeline = lambda option, word: option == "--preset" and word.startswith("models/")
    parsed = parse(script, [str(TINY_IF) if is_pipeline(option, word) else word for option, word in pairs])
    if isinstance(parsed, tuple):
        options, settings = parsed
        validate(distilled.with_sampling(settings))  # as train.py and plan.py do
        if getattr(options, "topology", None):
            assert targets.num_devices(options.topology) > 0
    elif isinstance(parsed, SamplingOptions) and "quickstart" in str(parsed.workdir):
        stages = tuple(imagen_jax.Stage(None, settings) for settings in load_preset("quickstart"))
        if script == "sweep.py":
            chosen = {n: v if isinstance(v, tuple) else (v,) for n, v in parsed.sampling().items()}
            for setting in sweep.combinations(chosen):
                sampling_by_stage(stages[:1] if parsed.stage else stages, setting)
        else:
            sampling_by_stage(stages, parsed.sampling())


@page
def test_command_lines_are_accepted(page, parse):
    for script, arguments in all_calls(page):
        try:
            check(parse, script, arguments)
        except ValueError as error:
            pytest.fail(f"{script} {shlex.join(arguments)}: {error}")


@pytest.mark.slow
def test_command_lines_of_the_scripts_own_help_are_accepted(parse):
    calls = list(own_calls())
    assert len(calls) > 20
    for script, arguments in calls:
        try:
            check(parse, script, arguments)
        except ValueError as error:
            pytest.fail(f"{script} {shlex.join(arguments)}: {error}")


def test_command_lines_are_found_in_every_form():
    """Continued, in loops, in quotes, after a pipe: what is not found is not checked."""
    text = "for s in a b; do\n  FOO=1 python scripts/x.py --stage $s \\\n    --n 1 > log  # note\ndone\n"
    text += "ssh --command \"cd y && nohup python scripts/z.py --p 'q r' 2>&1\" | cat\nimagen-jax plan --preset b\n"
    assert list(script_calls(text)) == [
        ("x.py", ["--stage", "a", "--n", "1"]),
        ("x.py", ["--stage", "b", "--n", "1"]),
        ("z.py", ["--p", "q r", "2"]),
        ("plan.py", ["--preset", "b"]),
    ]
    assert {script for path in PAGES for script, _ in all_calls(path)} >= {
        "train.py", "sample.py", "prepare_data.py", "embed_text.py", "evaluate.py", "sweep.py", "plan.py", "soak.py",
    }  # fmt: skip


# --- names ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def options(parse):
    """Every option of every script, with both networks' fields."""
    found = set()
    homes = {script: ROOT / f"imagen_jax/cli/{command}.py" for command, (script, _) in COMMANDS.items()}
    homes |= {path.name: path for path in sorted((ROOT / "benchmarks").glob("*.py"))}
    for script, home in homes.items():
        needed = ["--preset", "quickstart", "--stage"] if "parse_stage" in home.read_text() else []
        for chosen in ("base", "sr64") if needed else ("",):
            with pytest.MonkeyPatch.context() as patch:
                printed = io.StringIO()
                patch.setattr(sys, "stdout", printed)
                with pytest.raises(SystemExit):
                    parse(script, [*needed, *([chosen] if needed else []), "--help"])
            found |= set(re.findall(r"--[a-z][\w.-]*", printed.getvalue()))
    return found


OF_OTHERS = {"--requeue", "--recursive"}  # of sbatch and of copying tools


@page
def test_options_exist(page, options):
    ours = [code for code in in_code(page) if re.match(rf"--|(scripts/)?\w+\.py |{CALL}", code)]
    named = {option for code in ours for option in re.findall(r"(?<!\S)--[a-z][\w.-]*", code)}
    assert named - options - OF_OTHERS == set()


@page
def test_files_and_links_exist(page):
    text = prose(page)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" not in link:
            target, _, heading = link.partition("#")
            file = (page.parent / target) if target else page
            assert file.exists(), link
            if heading:
                titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                assert heading in slugs, link
    for code in in_code(page):
        if re.fullmatch(
            r"(docs|scripts|benchmarks|configs|tests|imagen_jax|diffusion|evaluation|data|text)/[\w./]*", code
        ):
            assert (ROOT / code).exists() or (ROOT / "imagen_jax" / code).exists(), code
    for command in (words for block in blocks(page, "bash") for words in commands(block.text)):
        for word in command:
            if re.fullmatch(r"(scripts|benchmarks|tests|configs)/[\w./]+", word):
                assert (ROOT / word).exists(), word
        if command[:2] == ["pip", "install"] and command[-1].startswith(".["):
            setup = configparser.ConfigParser()
            setup.read(ROOT / "setup.cfg")
            assert command[-1][2:-1] in setup["options.extras_require"]


MODULES = {
    path.stem: ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "imagen_jax").rglob("*.py"))
    if path.stem != "__init__"
}


ENDINGS = (
    "py",
    "json",
    "jsonl",
    "csv",
    "png",
    "txt",
    "md",
    "jpg",
    "tar",
)  # of files, which are no attributes


@page
def test_dotted_names_exist(page):
    """`samplers.sample`, `Stage.prepare`, `generate.compile_cascade(...)` and fields such as `optim.decay_steps`."""
    fields = set(config.flat(config.StageConfig())) | {f"network.{name}" for name in ("stem_channels",)}
    for code in in_code(page):
        for found in re.findall(
            r"(?<![\w./-])([A-Za-z_]\w*(?:\.[a-zA-Z_]\w*)+)(?![\w/])", code.split("(")[0]
        ):
            if found in MODULES.values():
                continue
            first, *rest = found.removeprefix("imagen_jax.").removeprefix("diffusion.").split(".")
            if found.removeprefix("config.") in fields or not rest or rest[-1] in ENDINGS:
                continue
            if first in MODULES:
                owner = importlib.import_module(MODULES[first])
            elif first in imagen_jax.__all__:
                owner = getattr(imagen_jax, first)
            else:
                continue
            for name in rest:
                assert hasattr(owner, name) or name in getattr(owner, "__dataclass_fields__", ()), found
                owner = getattr(owner, name, None)


def test_every_sampling_option_is_documented_and_every_documented_one_exists():
    text = prose(ROOT / "docs/sampling.md")
    fields = set(config.flat_options())
    head = text[: text.index("## Parts of a cascade")]
    rows = re.findall(r"^\| (`.*?)\s*\|(.*)\|$", head, re.MULTILINE)
    named = {name for first, _ in rows for name in re.findall(r"`(\w+)(?:=\"[^`]*\")?`", first)}
    methods = set(samplers.SAMPLERS)
    assert named - methods - fields - set(schedules.SPACINGS) == set()
    assert fields - set(re.findall(r"\b\w+\b", " ".join(in_code(ROOT / "docs/sampling.md")))) == set()
    documented = {name for name in methods if f"| `{name}` |" in text}
    assert documented == methods
    assert set(schedules.SCHEDULES) <= set(re.findall(r"`(\w+)`", text))


def literals(*paths):
    """Every string in these files, the parts of f-strings as well."""
    return {
        node.value
        for path in paths
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_metric_is_documented_and_every_documented_one_is_measured():
    text = prose(ROOT / "docs/training.md")
    tables = text[text.index("Every `--run.log-every`") : text.index("Samples are drawn with")]
    documented = {
        name.split("/")[0]
        for row in re.findall(r"^\| (`.*?)\|", tables, re.MULTILINE)
        for name in re.findall("`(.*?)`", row)
    }
    training = ROOT / "imagen_jax/training"
    measured = {
        value.strip("_/")
        for value in literals(training / "meter.py", training / "monitor.py", training / "step.py")
    }
    assert {name for name in documented if name.removesuffix("_logsnr") not in measured} <= {
        "validation_loss"
    }


def test_every_reason_of_quarantine_is_documented_and_every_documented_one_is_given():
    text = prose(ROOT / "docs/data.md")
    table = text[text.index("| reason | of what |") : text.index("Each picture of the input has either")]
    documented = {
        reason for row in re.findall(r"^\| ([a-z ,]+) \|", table, re.MULTILINE) for reason in row.split(", ")
    } - {"reason"}
    given = literals(*(ROOT / "imagen_jax/prepare").glob("*.py"), ROOT / "imagen_jax/data/opening.py")
    assert documented - given == set()
    raised = set()
    for path in (ROOT / "imagen_jax/prepare").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                place = {"Unusable": 0, "LeftOut": 1}.get(node.func.id)
                if (
                    place is not None
                    and len(node.args) > place
                    and isinstance(node.args[place], ast.Constant)
                ):
                    raised.add(node.args[place].value)
    assert len(raised) > 5 and raised - documented == set()


@pytest.mark.parametrize(
    ("sentence", "value"),
    [
        (
            r"cut into parts: (\d+) pictures of a folder",
            lambda: MODULES and importlib.import_module("imagen_jax.prepare.folder").PART,
        ),
        (
            r"an archive, or (\d+) pictures of one above",
            lambda: importlib.import_module("imagen_jax.prepare.webdataset").PART,
        ),
        (r"row groups of (\d+) rows", lambda: importlib.import_module("imagen_jax.prepare.parquet").PART),
        (r"; (\d+) shapes\.", lambda: importlib.import_module("imagen_jax.prepare.origins").SHAPES_PART),
        (r"so (\d+) pictures or fewer are done without", lambda: parts.FEW),
        (r"files of (\d+) MiB or", lambda: output.JOINED_BYTES // 2**20),
        (r"MiB or (\d+) records", lambda: output.JOINED_RECORDS),
        (r"`--run.keep-checkpoints` \((\d+)\)", lambda: config.RunConfig().keep_checkpoints),
        (r"`--run.log-every` \((\d+)\)", lambda: config.RunConfig().log_every),
        (r"`--run.validation-images` \((\d+)\)", lambda: config.RunConfig().validation_images),
        (r"`--run.stall-timeout` \((\d+)\)", lambda: config.RunConfig().stall_timeout),
        (r"`--run.max-skipped` \((\d+)\)", lambda: config.RunConfig().max_skipped),
        (r"(\w+) noise schedules", lambda: ("eight", len(schedules.SCHEDULES) == 8)[0]),
        (r"and (\w+) samplers can be combined", lambda: ("six", len(samplers.SAMPLERS) == 6)[0]),
    ],
)
def test_numbers_are_those_of_the_code(sentence, value):
    text = " ".join(" ".join(path.read_text().split()) for path in PAGES)
    found = re.findall(sentence, text)
    assert found and {each.lower() for each in found} == {str(value())}


# --- the surface ----------------------------------------------------------------------------------


def public_names():
    """(name, object) of every row of the table at the end of docs/library.md."""
    text = prose(ROOT / "docs/library.md")
    for homes, entries in re.findall(
        r"^\| (`imagen_jax.*?) \| (.*) \|$", text[text.index("## Names") :], re.MULTILINE
    ):
        for home, group in zip(re.findall("`(.*?)`", homes), entries.split(";"), strict=False):
            for name in re.findall(r"`([\w.]+)`", group):
                module, _, last = f"{home}.{name}".rpartition(".")
                yield f"{home}.{name}", getattr(importlib.import_module(module), last)


NAMES = dict(public_names())


@pytest.mark.parametrize("name", NAMES)
def test_public_functions_say_what_they_take(name):
    """Every one has a docstring of its own, which names each of its parameters."""
    thing = NAMES[name]
    if not callable(thing):
        return
    text = inspect.getdoc(thing) or ""
    assert text and not text.startswith(f"{getattr(thing, '__name__', '')}("), name
    if inspect.isfunction(thing):
        parameters = [p for p in inspect.signature(thing).parameters if p not in ("self", "cls")]
        missing = [p for p in parameters if not re.search(rf"\b{p}\b", text)]
        assert not missing, f"{name} does not say what {missing} is"


def test_the_table_of_names_has_all_that_is_public():
    assert {f"imagen_jax.{name}" for name in imagen_jax.__all__} <= set(NAMES)
    assert sample_stage is NAMES["imagen_jax.sample_stage"]
