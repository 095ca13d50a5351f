"""Pictures of a data set at the size of results."""

import numpy as np
import pytest

from imagen_jax import resize
from imagen_jax.data import transforms
from imagen_jax.evaluation import METRICS, Samples, reference_pictures


def test_pictures_of_one_size_are_only_scaled():
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3)).astype(np.uint8)
    assert np.array_equal(reference_pictures(list(images), (16, 16)), transforms.to_unit(images))
    small = transforms.to_unit(resize.area(images, 8))
    np.testing.assert_allclose(reference_pictures(list(images), (8, 8)), small, atol=1e-6)


def test_pictures_of_any_size_are_cropped_to_the_aspect_of_results():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in ((40, 20), (24, 32), (64, 48))]
    found = reference_pictures(images, (64, 32))
    assert found.shape == (3, 24, 12, 3)  # the second picture has no more in this aspect
    np.testing.assert_allclose(found[1], transforms.to_unit(images[1][:, 10:22]), atol=1e-6)


def test_pictures_below_8_pixels_are_refused():
    with pytest.raises(ValueError, match="--data must have pictures of at least 8x8 pixels .*; got one of 7x7"):
        reference_pictures([np.zeros((7, 9, 3), np.uint8)], (64, 64), "--data")


@pytest.mark.parametrize("size", [(64, 64), (48, 96), (36, 36), (256, 200)])
def test_a_perfect_generator_has_the_distance_0(size):
    """Whatever the size and aspect of the pictures of the data set."""
    rng = np.random.default_rng(0)
    images = [resize.bilinear(rng.uniform(0, 255, (4, 4, 3)), size) for _ in range(12)]
    results = np.stack([transforms.fit(image, (64, 64)) for image in images])
    metric = METRICS["frechet"]()
    found = reference_pictures(images, (64, 64))
    samples = Samples(results, ["a"] * 12, reference=found)
    distance = metric.result(metric.update(metric.init(), samples))
    others = Samples(results[::-1] * 0.5, ["a"] * 12, reference=found)
    assert abs(distance) < 0.05 < metric.result(metric.update(metric.init(), others))
