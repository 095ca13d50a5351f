import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import sample_stage
from imagen_jax.generate import compile_cascade
from imagen_jax.sampling.cascade import run_cascade
from imagen_jax.sampling.plan import plan_cascade


@pytest.mark.slow
def test_compiled_ahead_of_time(tiny_stages, make_request, sixteen_images):
    sample, program = compile_cascade(tiny_stages, 16)
    for num in (16, 7):
        np.testing.assert_allclose(sample(tiny_stages, *make_request(num)), sixteen_images[:num], atol=1e-5)
    assert program.cost_analysis()["flops"] > 0
    half = lambda text: text.replace(embeddings=text.embeddings.astype(jnp.bfloat16))
    text, keys = make_request(3)
    assert sample(tiny_stages, half(text), keys).shape == (3, 16, 16, 3)
    with pytest.raises(ValueError, match="keys must have 1 to 16 rows; got 17"):
        sample(tiny_stages, *make_request(17))
    with pytest.raises(ValueError, match=r"text must have embeddings \[2, 5, 12\], .*; got \(3, 5, 12\)"):
        sample(tiny_stages, text, keys[:2])
    with pytest.raises(ValueError, match="multiple of the 8 devices; got 12"):
        compile_cascade(tiny_stages, 12)


@pytest.mark.slow
def test_one_program_needs_no_more_memory_than_its_largest_stage(tiny_stages, make_request):
    """Buffers of one stage are reused by the next."""
    text, keys = make_request(8)
    small = jnp.zeros((8, 8, 8, 3))
    memory = lambda f, *a: jax.jit(f).lower(*a).compile().memory_analysis().temp_size_in_bytes
    both = memory(lambda s: run_cascade(plan_cascade(s, text, keys)), tiny_stages)
    base = memory(lambda s: sample_stage(s, text, keys), tiny_stages[0])
    last = memory(lambda s: sample_stage(s, text, keys, low_res=small), tiny_stages[1])
    assert both < max(base, last) + 0.5 * min(base, last)
