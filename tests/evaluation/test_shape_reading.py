import numpy as np
import pytest

from imagen_jax.evaluation import shape_reading
from imagen_jax.prepare import shapes


def test_reading_finds_the_whole_scene():
    for i in range(120):
        scene = shapes.scene(i)
        reading = shape_reading.read(shapes.render(scene))
        assert reading.background == scene.background
        assert len(reading.objects) == len(scene.objects)
        for thing in scene.objects:
            seen = min(reading.objects, key=lambda o: np.hypot(*np.subtract(o.center, thing.center)))
            traits = (thing.shape, thing.color, thing.size)
            assert (seen.shape, seen.color, seen.size) == traits
            assert np.allclose(seen.center, thing.center, atol=0.3 + 0.02 * thing.diameter)
            assert seen.diameter == pytest.approx(thing.diameter, abs=0.5)


@pytest.mark.parametrize("background", shapes.BACKGROUNDS)
def test_touching_objects_are_told_apart_by_color(background):
    diameter = sum(shapes.SIZES_TOGETHER["large"]) / 2
    objects = [
        shapes.Object(shape, color, "large", (x, 32.0), diameter)
        for shape, color, x in (("square", "red", 22.0), ("circle", "yellow", 42.0))
    ]
    image = shapes.render(shapes.Scene("and", objects, background))
    seen = {(o.color, o.shape) for o in shape_reading.read(image).objects}
    assert seen == {("red", "square"), ("yellow", "circle")}


@pytest.mark.parametrize(
    "image",
    [np.zeros((32, 32, 3)), np.zeros((1, 64, 64, 3)), np.full((64, 64, 3), 255.0),
     np.full((64, 64, 3), np.nan)],
)  # fmt: skip
def test_pictures_of_other_kinds_are_refused(image):
    with pytest.raises(ValueError, match="a picture"):
        shape_reading.read(image)


def test_colors_are_far_apart_to_the_eye():
    named = np.array([*shapes.COLORS.values(), *shapes.BACKGROUNDS.values()])
    lab = shape_reading.lab(named)
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1) + 100 * np.eye(len(named))
    assert distances.min() > 34
    # Known values: white, and sRGB red (D65).
    assert np.allclose(shape_reading.lab([[255, 255, 255]]), [[100, 0, 0]], atol=0.05)
    assert np.allclose(shape_reading.lab([255, 0, 0]), [53.24, 80.09, 67.20], atol=0.1)
