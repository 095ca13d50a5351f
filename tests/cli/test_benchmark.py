"""The command benchmark: what it refuses, shows and writes."""

import dataclasses
import json

import pytest

from imagen_jax.cli import benchmark
from imagen_jax.planning import machine, measure

MEASURED = measure.Measured(
    stage="base",
    kind="train",
    batch=8,
    device="cpu",
    num_devices=1,
    dtype="float32",
    parameters=8_100_000,
    arrays=45,
    unpacked_arrays=100,
    stablehlo_lines=7000,
    compilation=machine.Seconds(90.0, 90.0, 90.0, 100.0),
    step=machine.Seconds(2.0, 1.5, 2.5, 3.0),
    images_per_s=4.0,
    model_flops=100 * 10**9,
    compiled_flops=110e9,
    compiled_bytes=2.0**32,
    peaks=machine.Peaks(1e11, 2e10),
    model_utilisation=0.5,
    compiled_utilisation=0.55,
    bandwidth_utilisation=0.1,
    argument_bytes=2**28,
    temporary_bytes=2**29,
    peak_bytes=2**30,
    planned_peak_bytes=2**30,
    in_use_bytes=None,
    seconds_by_kind={"convolution, forward": 1.5, "other": 0.25, measure.BETWEEN: 0.25},
    flops_by_kind={"convolution, forward": 60 * 10**9},
    data=machine.Seconds(0.01, 0.01, 0.01, 0.01),
    data_source=None,
)


@pytest.fixture
def measured(monkeypatch):
    """What the command has asked for: (configuration, kind, steps, dtype)."""
    asked = []
    monkeypatch.setattr(measure, "measure", lambda *given: asked.append(given) or MEASURED)
    return asked


def test_a_measurement_is_shown_and_written(run_script, measured, tmp_path):
    out = tmp_path / "results/train.json"
    ran = run_script(
        "benchmark.py", "--preset", "quickstart", "--stage", "sr64", "--batch", 8, "--steps", 3, "--output", out
    )
    assert ran.status == 0, ran.err
    ((config, *others),) = measured
    assert (config.name, config.optim.batch_size, *others) == ("sr64", 8, "train", 3, "float32")
    assert "8.1M parameters, 45 arrays for 100\n" in ran.out
    assert "100 GFLOP, 50.0 % of 0.1 TFLOP/s" in ran.out and "2 s (1.5 to 2.5), 3 CPU s" in ran.out
    assert "| convolution, forward | 1500 | 75.0 | 60 | 40 |" in ran.out and "no data set is there" in ran.out
    written = json.loads(out.read_text())
    assert written.pop("versions").keys() == {"imagen_jax", "jax", "jaxlib"}
    assert written == json.loads(json.dumps(dataclasses.asdict(MEASURED)))


@pytest.mark.parametrize("option", ["--workdir", "--preset"])
def test_a_trained_cascade_is_measured_with_changes(run_script, measured, tiny_stages, tmp_path, option):
    from imagen_jax import save_cascade

    save_cascade(tiny_stages, tmp_path / "cascade")
    arguments = [option, tmp_path / "cascade", "--stage", "sr16", "--kind", "sample", "--sampling.steps", 7]
    arguments += ["--dtype", "bfloat16"]
    ran = run_script("benchmark.py", *arguments)
    assert ran.status == 0, ran.err
    ((config, kind, _, dtype),) = measured
    assert (config.name, kind, config.sampling.steps, dtype) == ("sr16", "sample", 7, "bfloat16")


def test_kinds_may_be_unknown_and_a_sampler_has_no_data():
    shown = benchmark.table(dataclasses.replace(MEASURED, kind="sample", seconds_by_kind={}, data=None), 4)
    assert "the profiler names no operations" in shown and "500 ms a sampling step" in shown and "data " not in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--preset must be given; got no value: name a preset, or a cascade with --workdir."),
        (["--preset", "quickstart", "--workdir", "w"], "--preset must be left out with --workdir; got 'quickstart'"),
        (["--preset", "quickstart", "--steps", "0"], "--steps must be at least 1; got 0"),
        (["--preset", "quickstart", "--batch", "0"], "--batch must be"),
        (["--preset", "quickstart", "--stage", "x"], "--stage must be one of base, sr64 in preset quickstart"),
        (["--preset", "quickstart", "--dtype", "bfloat16"], "--dtype must be float32 for a train step"),
        (["--preset", "quickstart", "--kind", "both"], "--kind must be one of train, sample"),
        (["--preset", "quickstart", "--output", "/dev/null/x"], "--output must be a directory"),
        (["--workdir", "{tmp}/none"], "the directory of a cascade or hf://OWNER/NAME; got"),
        (["--workdir", "{tmp}"], "workdir must hold trained stages, but has none"),
    ],
)
def test_wrong_options_are_one_line(run_script, measured, tmp_path, arguments, message):
    ran = run_script("benchmark.py", *(word.replace("{tmp}", str(tmp_path)) for word in arguments))
    assert ran.status == 2 and message in ran.err and ran.err.count("\n") == 1, ran.err
    assert not measured
