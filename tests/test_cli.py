"""Wrong input to the command lines: one clear line, exit status 2, nothing written."""

import pytest

from tests.cli.conftest import TRAIN, status_and_error

PLAN = ["plan.py", "--quick", "--preset"]
SAMPLE = ["sample.py", "--workdir", "{tmp}/run"]
OTHER = ["train.py", "--preset", "quickstart", "--stage", "base"]
MAKE = ["prepare_data.py", "--shapes", "single", "--output", "out"]
SWEEP = ["sweep.py", "--workdir", "{tmp}/run"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py", "--preset", "imagenet", "--stage", "base", "--workdir", "w"], "--preset must be one of"),
        (["train.py", "--preset", "quickstart", "--stage", "sr9", "--workdir", "w"], "must be one of base, sr64"),
        (["train.py", "--preset", "quickstart", "--stage", "base"], "--workdir"),
        ([*TRAIN, "--optim.learning-rat", "1"], "those of this command; got --optim.learning-rat: did you mean"),
        ([*TRAIN, "--learning-rate", "1"], "got --learning-rate: did you mean --optim.learning-rate?"),
        ([*TRAIN, "--num_step", "1"], "got --num-step: did you mean --run.num-steps?"),
        ([*TRAIN, "--zzzzz"], "got --zzzzz: --help lists all options."),
        ([*TRAIN, "--wörkdir", "w"], "got --wörkdir: did you mean --workdir?"),
        ([*TRAIN, "--optim.learning-rate", "fast"], "--optim.learning-rate must be a number; got 'fast'."),
        ([*TRAIN, "--optim.batch-size", "1e3"], "--optim.batch-size must be a whole number; got '1e3'."),
        ([*TRAIN, "--optim.batch-size", "8", "9"], "--optim.batch-size must be a whole number; got '8' '9'."),
        ([*TRAIN, "--optim.batch-size=-1"], "--optim.batch-size must be"),
        ([*TRAIN, "--process.prediction", "flow"], "--process.prediction must be one of x, eps, v, edm; got 'flow'."),
        ([*TRAIN, "--process.loss-weight", "min-snr"], "got 'min-snr' (did you mean min_snr?)."),
        ([*TRAIN, "--data.flip", "yes"], "--data.flip must stand without a value; got 'yes'"),
        ([*TRAIN, "--network.attention", "1"], "--network.attention must be True or False; got '1'."),
        ([*TRAIN, "--network.channels"], "network.channels must have at least one level"),
        ([*TRAIN, "--text.width", "wide"], "--text.width must be a whole number or None; got 'wide'."),
        ([*TRAIN, "--seed"], "--seed must be a whole number; got no value."),
        ([*TRAIN, "--seed", "1", "--seed", "2"], "--seed must be given once; got it twice"),
        ([*TRAIN, "--data.flip", "--data.no-flip"], "--data.flip must be given once"),
        ([*TRAIN, "--data.path", ""], "--data.path must be a text that is not empty; got ''."),
        ([*TRAIN, "--no-seed"], "got --no-seed:"),
        (["train.py", "stray", *TRAIN[1:]], "options must begin with two dashes; got 'stray'"),
        (["train.py", *TRAIN[1:-1], ""], "--workdir must be a path or URL; got ''."),
        (["train.py"], "--preset and --stage and --workdir must be given; got no value"),
        (["train.py", "--stage", "base"], "--preset and --workdir must be given"),
        (["train.py", "--preset", "quickstart", "--stage", "", "--workdir", "w"], "--stage must be a text that is not"),
        (["plan.py", "--quick"], "--preset must be given; got no value"),
        ([*TRAIN, "--optim.batch-size", "31"], "divisible by devices x --optim.accumulation = 8 x 1; got 31: use 32"),
        ([*TRAIN, "--optim.accumulation", "5"], "--optim.batch-size must be a multiple of --optim.accumulation 5"),
        ([*TRAIN, "--image-size", "18"], "multiple of the network's total stride 8"),
        ([*TRAIN, "--run.fsdp", "3"], "--run.fsdp must divide the number of devices 8"),
        ([*TRAIN, "--data.path", "{tmp}/nowhere"], "nowhere"),
        ([*TRAIN, "--run.wandb", "team/project"], "--run.wandb must be the name of a project"),
        ([*TRAIN, "--run.wandb", "p" * 129], "--run.wandb must be the name of a project"),
        (
            ["train.py", "--preset", "quickstart", "--stage", "sr64", "--workdir", "w", "--low-res-size", "None"],
            "--low-res-size must be set for a super-resolution stage",
        ),
        ([*SAMPLE, "--prompts", "a"], "--workdir must hold trained stages, but has none; got"),
        (SAMPLE, '--prompts or --prompts-file must be given, and not both; got neither.'),
        ([*SAMPLE, "--prompts-file", "{tmp}/empty.txt"], "empty.txt must hold one prompt per line; got an empty file"),
        (
            [*SAMPLE, "--prompts-file", "{tmp}/missing.txt"],
            "--prompts-file must be a text file; got {tmp}/missing.txt, which does not exist: give",
        ),
        ([*SAMPLE, "--prompts-file", "{tmp}"], "--prompts-file must be a text file; got {tmp}, which is a folder: "),
        ([*SWEEP, "--prompts-file", "{tmp}/missing.txt"], "--prompts-file must be a text file; "),
        ([*SAMPLE, "--prompts", "a", "--num", "0"], "--num must be at least 1; got 0"),
        ([*SAMPLE, "--prompts", "a", "--num", "1e23"], "--num must be a whole number"),
        ([*SAMPLE, "--prompts", "a", "--num", f"{10**23}"], "--num must be at most 100000"),
        ([*SAMPLE, "--prompts", "a", "b", "--num", "1000000000"], "--num must be at most 50000"),
        ([*SAMPLE, "--prompts", "a", "--batch-size", "0"], "--batch-size must be at least 1; got 0"),
        ([*SAMPLE, "--prompts", "a", "--batch-size", f"{10**400}"], "--batch-size must be at most 65536"),
        ([*SAMPLE, "--prompts", "a", "--seed", "-1"], "--seed must be at least 0; got -1"),
        ([*SAMPLE, "--prompts", "a", "--seed", "4294967295", "--num", "2"], "--seed must be at most 4294967294"),
        ([*SAMPLE, "--prompts", "a", "--output", "{tmp}/empty.txt"], "--output must be a directory; "),
        ([*SAMPLE, "--prompts", "a", "--output", "{tmp}/empty.txt/x"], "--output must be a directory; "),
        ([*SAMPLE, "--prompts", "a", "--output", "/dev/null"], "--output must be a directory; got /dev/null, which"),
        ([*SAMPLE, "--prompts", "a", "--output", "n" * 300], "--output must have names of at most 255 bytes"),
        (["sample.py", "--from-png", "{tmp}/empty.txt"], "--from-png must be a PNG; "),
        (["sample.py", "--from-png", "{tmp}/missing.png"], "--from-png must be a PNG file; got {tmp}/missing.png"),
        (["sample.py", "--from-png", "{tmp}"], "--from-png must be a PNG file; "),
        (["evaluate.py", "--workdir", "w", "--data", "d", "--output", "/dev/null"], "--output must be a directory; "),
        (["evaluate.py", "--workdir", "w", "--data", "d", "--output", "{tmp}/empty.txt/x"], "--output must be a"),
        (["evaluate.py", "--workdir", "w", "--data", "d", "--num", "0"], "--num must be at least 1; got 0"),
        (["evaluate.py", "--workdir", "w", "--data", "d", "--num", f"{10**23}"], "--num must be at most 1000000000"),
        (["evaluate.py", "--workdir", "w", "--data", "d", "--batch-size", "-3"], "--batch-size must be at least 1"),
        (["evaluate.py", "--workdir", "w", "--data", "d", "--seed", f"{2**32}"], "--seed must be at most 4294967295"),
        ([*SWEEP, "--output", "{tmp}/empty.txt"], "--output must be a directory; "),
        ([*SWEEP, "--output", "n" * 300], "--output must have names of at most 255 bytes"),
        ([*SWEEP, "--output", "{tmp}/taken"], "--output must be a place for the file best.png; "),
        (["evaluate.py", "--workdir", "w", "--data", "d", "--output", "{tmp}/taken"], "for the file alignment.md; "),
        ([*SWEEP, "--num", "-1"], "--num must be at least 1; got -1"),
        ([*SWEEP, "--batch-size", f"{10**23}"], "--batch-size must be at most 65536"),
        ([*SWEEP, "--seed", f"{2**64}"], "--seed must be at most 4294967295"),
        ([*SWEEP, "--prompts-file", "{tmp}/empty.txt"], "empty.txt must hold one prompt per line; got an empty file"),
        ([*OTHER, "--workdir", "/dev/null"], "--workdir must be a directory; "),
        ([*OTHER, "--workdir", "{tmp}/empty.txt/x"], "--workdir must be a directory; "),
        ([*OTHER, "--workdir", "n" * 300], "--workdir must have names of at most 255 bytes"),
        ([*OTHER, "--workdir", "/proc/x"], "--workdir must be writable; "),
        ([*MAKE, "--num-train", f"{10**23}"], "--num-train must be at most 10000000"),
        ([*MAKE, "--num-train", "0"], "--num-train must be at least 1; got 0"),
        ([*MAKE, "--num-test", "-1"], "--num-test must be at least 0; got -1"),
        ([*MAKE, "--num-workers", f"{10**9}"], "--num-workers must be at most 4096"),
        (["prepare_data.py", "--shapes", "single", "--output", "{tmp}/empty.txt/x"], "--output must be a directory; "),
        (["prepare_data.py", "--icons", "{tmp}/none.tgz", "--output", "out"], "--icons must be a .tgz file or"),
        (["prepare_data.py", "--shapes", "single", "--output", "/dev/null/x"], "--output must be a directory; "),
        (["prepare_data.py", "--shapes", "single", "--output", "n" * 250], "--output must have names of at most"),
        (["prepare_data.py", "--shapes", "single", "--output", "/proc/x/y"], "--output must be writable; "),
        (
            [*SAMPLE, "--prompts", "a", "--sampler", "euler"],
            "--sampler must be one of ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, heun, unipc or None; got 'euler'.",
        ),
        ([*SAMPLE, "--prompts", "a", "--spacing", "t", "log-snr"], "got 'log-snr' (did you mean logsnr?)."),
        ([*SAMPLE, "--prompts", "a", "--steps"], "--steps must be a whole number or None; got no value."),
        ([*SAMPLE, "--prompts", "a", "--steps", "4", "x", "８"], "--steps must be a whole number or None; got 'x'."),
        ([*SAMPLE, "--prompts", "a", "--prompts", "b"], "--prompts must be given once; got it twice: give all its"),
        ([*SAMPLE, "--prompts", "a", "--size", "64"], "--size must be 2 whole numbers or None; got '64'."),
        ([*SAMPLE, "--prompts", "a", "--outpaint", "1", "2", "3", "x"], "--outpaint must be 4 whole numbers or None"),
        ([*SAMPLE, "--prompts", "a", "--best=1"], "--best must stand without a value; got '1'"),
        (["sample.py", "--prompts", "a"], "--workdir must be given; got no value: name the directory"),
        (["evaluate.py", "--workdir", "w", "--data", "{tmp}/nowhere"], "nowhere"),
        (["train_recogniser.py", "--data", "{tmp}/nowhere", "--output", "out"], "nowhere"),
        (["train_recogniser.py", "--data", "d", "--output", "{tmp}/empty.txt"], "--output must be a directory; "),
        (["train_recogniser.py", "--data", "d", "--output", "out", "--epochs", "0"], "--epochs must be at least"),
        ([*PLAN, "base64:2b", "--topology", "v5x:2x2"], "--topology must be a TPU slice"),
        ([*PLAN, "base64:9b", "--topology", "v5e:2x2"], "size: 300m, 500m, 1b, 2b"),
        ([*PLAN, "base64:300m", "--topology", "v5e:2x2", "--batch", "63"], "4 x 1; got 63: use 64"),
        ([*PLAN, "sr256", "--topology", "v5e:2x2", "--fsdp", "8"], "--fsdp must divide the number of devices 4"),
        ([*PLAN, "sr256", "--dtype", "bfloat16"], "--dtype must be float32 for a train step"),
        ([*PLAN, "sr256", "--stage", "base"], "--stage must be one of sr256"),
        ([*PLAN, "sr1024", "--run.height", "3"], "run.height must be a divisor of the rows"),
        (["prepare_data.py", "--output", "out"], "give --input FOLDER, --icons FILES or --shapes"),
        (
            ["prepare_data.py", "--shapes", "round", "--output", "out"],
            "--shapes must be one of single, full, relations, halves or None",
        ),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(monkeypatch, capsys, tmp_path, arguments, message):
    (tmp_path / "empty.txt").write_text("\n  \n")
    for name in ("best.png", "alignment.md"):
        (tmp_path / "taken" / name).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    code, err = status_and_error(monkeypatch, capsys, arguments, tmp_path)
    assert code == 2
    assert message.replace("{tmp}", str(tmp_path)) in err and len(err.strip().splitlines()) == 1, err
    assert sorted(tmp_path.rglob("*")) == before
