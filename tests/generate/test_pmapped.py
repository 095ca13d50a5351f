"""Pmapped sampling draws the images of one device, whatever their number."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import resize, sample_cascade
from imagen_jax.generate import pmapped

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("num", [1, 7, 16])
def test_the_images_are_the_same_to_1e_5(tiny_stages, make_request, sixteen_images, num):
    out = pmapped.pmap_sample_cascade(tiny_stages, *make_request(num))
    assert out.shape == (num, 16, 16, 3)
    np.testing.assert_allclose(out, sixteen_images[:num], atol=1e-5)


def test_every_input_is_taken(tiny_stages, make_request):
    text, keys = make_request(7)
    picture = jnp.asarray(resize.bilinear(np.random.default_rng(0).uniform(-1, 1, (7, 4, 4, 3)), 16))
    mask = jnp.zeros((7, 16, 16)).at[:, :, 4:11].set(1)
    options = {
        "image": picture, "mask": mask, "negative": jax.tree.map(lambda leaf: leaf[:1], text), "sampler": "unipc",
        "steps": (3, 2), "guidance_scale": (2.0, 1.5), "return_all": True, "resample": 2,
    }  # fmt: skip
    one = sample_cascade(tiny_stages, text, keys, **options)
    eight = pmapped.pmap_sample_cascade(tiny_stages, text, keys, **options)
    for a, b in zip(one, eight, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_programs_are_kept(tiny_stages, make_request):
    run = lambda: pmapped.pmap_sample_cascade(tiny_stages, *make_request(8), steps=2)
    run()
    before = pmapped._pmapped.cache_info()
    run()
    assert pmapped._pmapped.cache_info().hits == before.hits + 1
