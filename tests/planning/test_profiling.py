"""Time of operations, from intervals and from a real trace."""

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.planning import profiling


def test_time_is_divided_among_operations_that_run_at_once():
    intervals = [(0.0, 10.0, "a"), (5.0, 10.0, "b"), (5.0, 6.0, "c"), (20.0, 21.0, "a"), (3.0, 3.0, "none")]
    found = profiling.divided(intervals)
    assert found == pytest.approx({"a": 5 + 1 / 3 + 4 / 2 + 1, "b": 1 / 3 + 2, "c": 1 / 3})
    assert sum(found.values()) == pytest.approx(11)  # the length of their union


def test_operations_of_a_program_are_found_in_its_trace():
    function = jax.jit(lambda x: jnp.sin(x @ x) @ x)
    x = jnp.ones((256, 256))
    compiled = function.lower(x).compile()
    jax.block_until_ready(compiled(x))
    run = lambda: jax.block_until_ready(compiled(x))
    seconds, passed = profiling.seconds_by_operation(run, "jit__lambda")
    text = compiled.as_text()
    assert len(seconds) >= 3 and all(f"%{name} = " in text for name in seconds)
    assert 0 < sum(seconds.values()) <= passed
    some = next(iter(seconds))
    assert some not in profiling.seconds_by_operation(run, "jit__lambda", [some])[0]
    assert profiling.seconds_by_operation(run, "jit_other")[0] == {}
