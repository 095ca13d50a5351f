"""Traces of training steps."""

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.training import profiler


def run(directory, num, last):
    step = jax.jit(lambda x: x @ x)
    with profiler.Trace(directory, 10, num) as trace:
        for done in range(11, last + 1):
            trace.before(done)
            trace.after(done, step(jnp.ones((8, 8))))


@pytest.mark.parametrize(("num", "last"), [(2, 17), (50, 15)], ids=["some steps", "to the end"])
def test_a_trace_opens_in_tensorboard_and_perfetto(tmp_path, num, last):
    run(tmp_path / "profile", num, last)
    (trace,) = (tmp_path / "profile").rglob("*.xplane.pb")
    names = [
        event.name
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
    ]
    assert names.count("train") == min(num, last - 13)
    assert len(list((tmp_path / "profile").rglob("perfetto_trace.json.gz"))) == 1


@pytest.mark.parametrize(("num", "last"), [(0, 17), (2, 12)], ids=["not asked for", "too few steps"])
def test_nothing_is_written(tmp_path, num, last):
    run(tmp_path / "profile", num, last)
    assert not (tmp_path / "profile").exists()


def test_what_cannot_be_traced_is_refused(tmp_path):
    profiler.check(profiler.MAX_STEPS, tmp_path)
    for num in (-1, profiler.MAX_STEPS + 1, True):
        with pytest.raises(ValueError, match="--profile must be"):
            profiler.check(num, tmp_path)
