"""Measurements of tiny stages; their numbers say nothing, but agree with each other."""

import dataclasses

import pytest

from imagen_jax.planning import hlo, machine, measure, program
from imagen_jax.training.utilisation import model_flops_per_image


@pytest.fixture
def quick_peaks(monkeypatch):
    """No large matrices."""
    monkeypatch.setattr(measure, "measure_peaks", lambda mesh, dtype: machine.Peaks(1e12, 1e11))


@pytest.mark.slow
def test_a_train_step_is_measured(tiny_configs, quick_peaks):
    network = dataclasses.replace(tiny_configs[0].network, attention=(False,))
    run = dataclasses.replace(tiny_configs[0].run, fsdp=2, height=2)
    config = dataclasses.replace(tiny_configs[0], network=network, run=run)
    found = measure.measure(config, "train", 2)
    assert found.batch == 8 and found.num_devices == 8 and found.stage == config.name
    assert found.images_per_s == pytest.approx(8 / found.step.median)
    assert found.model_flops == 8 * model_flops_per_image(config)
    assert found.model_utilisation == pytest.approx(found.model_flops / found.step.median / 1e12)
    assert found.compiled_flops > found.model_flops / 2 and found.peak_bytes > found.argument_bytes > 0
    assert set(found.seconds_by_kind) <= {*hlo.KINDS, measure.BETWEEN}
    work = {hlo.FORWARD, hlo.INPUT_GRADIENT, hlo.KERNEL_GRADIENT, "optimiser", "random numbers"}
    assert work <= {kind for kind, seconds in found.seconds_by_kind.items() if seconds > 0}
    assert found.data.median > 0 and found.data_source is None


@pytest.mark.slow
def test_a_sampler_is_measured(tiny_configs, quick_peaks):
    base, sr = tiny_configs
    more = dataclasses.replace(sr, sampling=dataclasses.replace(sr.sampling, steps=3))
    found = measure.measure(more, "sample", 1, "bfloat16")
    assert found.data is None and found.kind == "sample" and found.images_per_s > 0
    kinds = {kind for kind, seconds in found.seconds_by_kind.items() if seconds > 0}
    assert {hlo.FORWARD, "thresholding"} <= kinds and not {hlo.KERNEL_GRADIENT, "optimiser"} & kinds
    assert found.compiled_flops == pytest.approx(found.model_flops, rel=0.5)  # each of the steps is counted


def test_a_batch_that_does_not_fit_names_the_largest_that_does(tiny_configs, monkeypatch):
    """Without tracing and compiling: what the compiler says is given."""

    class Step:
        def lower(self, *args):
            return self

        def as_text(self):
            return ""

    def refuse(lowered):
        raise program.DoesNotFit("too much", 40 * 2**20)

    monkeypatch.setattr(measure, "memory_limit", lambda: 10 * 2**20)
    monkeypatch.setattr(measure, "estimate", lambda *args: None)
    monkeypatch.setattr(program, "build", lambda config, kind, mesh, held: (Step(), (held,)))
    monkeypatch.setattr(program, "compile_lowered", refuse)
    many = dataclasses.replace(tiny_configs[0], optim=dataclasses.replace(tiny_configs[0].optim, batch_size=64))
    with pytest.raises(ValueError, match=r"batch must fit .* got 64, which needs .* of 0.01 GiB: give 8 or"):
        measure.measure(many, "train", 1)
    assert "no batch fits" in str(measure._does_not_fit(64, 8, needed=100, state=60, limit=50))
    assert "give 32 or fewer" in str(measure._does_not_fit(64, 8, needed=100, state=60, limit=None))


def test_batches_are_read_where_there_is_a_data_set(tiny_configs, tmp_path):
    from imagen_jax import sharding
    from tests.conftest import write_shapes

    path = str(write_shapes(tmp_path / "data", train=20))
    config = dataclasses.replace(tiny_configs[0], data=dataclasses.replace(tiny_configs[0].data, path=path))
    found, source = measure._data(config, sharding.make_mesh(), 2)
    assert source == path and found.median > 0
