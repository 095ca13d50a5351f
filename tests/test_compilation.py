"""Programs are compiled once, and compilation can be cancelled."""

import os
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import compilation


def test_a_compilation_that_is_no_longer_wanted_is_not_waited_for():
    ended = threading.Event()

    class Jitted:
        def lower(self, *args):
            ended.wait(30)
            return self

        def compile(self):
            return "program"

    asked = iter([None, None, True])
    with pytest.raises(compilation.Cancelled):
        compilation.compile_jitted(Jitted(), 1, cancelled=lambda: next(asked))
    assert compilation.has_abandoned_compilation()
    ended.set()
    assert compilation.compile_jitted(Jitted(), 1, cancelled=lambda: None) == "program"
    compilation._abandoned.pop().join(10)
    assert not compilation.has_abandoned_compilation()


@pytest.mark.parametrize("error", [ValueError("shape"), TimeoutError("slow"), KeyboardInterrupt()])
def test_an_error_in_a_compilation_is_its_own(error):
    class Jitted:
        def lower(self, *args):
            raise error

    with pytest.raises(type(error)):
        compilation.compile_jitted(Jitted(), cancelled=lambda: None)


PROGRAM = """
import jax, sys
from imagen_jax import stage
from imagen_jax import compilation
from imagen_jax.generate import compile_cascade
from imagen_jax.stage import Stage
from imagen_jax.config import *
events = []
jax.monitoring.register_event_listener(lambda name, **kw: events.append(name))
compilation.use_compilation_cache(sys.argv[1])
config = StageConfig(
    image_size=8, network=UNetConfig((8,), (1,), (False,), embedding=32, head_dim=8),
    sampling=SamplingConfig(sampler="unipc", steps=4), text=TextConfig(width=12, length=5),
)
params = jax.eval_shape(lambda: stage.init(config, jax.random.key(0)))
compile_cascade((Stage(params, config),), 2)
print(sum(name.endswith("cache_misses") for name in events), sum(name.endswith("cache_hits") for name in events))
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing(tmp_path):
    tests_own = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_ENABLE_COMPILATION_CACHE")
    environment = {k: v for k, v in os.environ.items() if k not in tests_own}

    def run():
        command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        return tuple(map(int, out.split()))

    (misses, _), (misses_again, hits) = run(), run()
    assert misses > 0 and misses_again == 0 and hits >= misses


def test_programs_that_train_compile_with_fewer_passes_on_cpus_to_the_same_values():
    """Elsewhere with the compiler's own options."""
    assert compilation.options("gpu") is None and compilation.options("tpu") is None
    step = lambda x: jnp.tanh(x @ x).sum(0)
    x = jax.random.normal(jax.random.key(0), (64, 64))
    found = jax.jit(step, compiler_options=compilation.options("cpu"))(x)
    np.testing.assert_allclose(found, jax.jit(step)(x), rtol=1e-5, atol=1e-5)
