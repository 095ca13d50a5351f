"""Repeated calls, and what the machine reaches."""

import jax.numpy as jnp

from imagen_jax import sharding
from imagen_jax.planning import machine


def test_the_first_call_is_not_timed():
    calls = []
    found = machine.repeated(lambda: calls.append(0), 4)
    assert len(calls) == 5
    assert 0 <= found.least <= found.median <= found.most and found.cpu >= 0


def test_peaks_are_those_of_all_devices():
    found = machine.measure_peaks(sharding.make_mesh(2, height=2), jnp.float32, side=16, repeats=2)
    assert found.flops > 0 and found.bandwidth > 0


def test_memory_is_shared_by_the_devices_of_a_cpu():
    assert 2**20 < machine.memory_limit() < 2**50
