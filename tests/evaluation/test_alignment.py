import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from imagen_jax import resize
from imagen_jax.evaluation import METRICS, Samples, alignment, shape_reading
from imagen_jax.prepare import shape_captions, shapes

NUM = 120


@pytest.fixture(scope="module")
def examples():
    streams = [(split, part) for split in ("train", "test") for part in shapes.PARTS]
    return [record for stream in streams for record in shapes.examples(*stream, NUM)]


def as_float(image):
    return image.astype(np.float32) / 127.5 - 1


def halved(image):
    """64 -> 32 by area, -> 64 bilinear, as a picture from a 32x32 model comes out."""
    small = as_float(image).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    return ndimage.zoom(small, (2, 2, 1), order=1, mode="nearest", grid_mode=True)


def noisy(image):
    return as_float(image) + np.random.default_rng(image.sum()).normal(0, 0.05, image.shape)


def specked(image):
    image = image.copy()
    image[2:5, 2:5] = 255 - image[2:5, 2:5]
    image[60:62, 30:34] = (40, 205, 215)
    return image


@pytest.mark.slow
@pytest.mark.parametrize(("change", "every"), [(np.asarray, 1), (as_float, 4), (noisy, 2), (halved, 1)])
def test_true_pictures_are_read_right(examples, change, every):
    examples = examples[::every]
    images = [change(record["image"]) for record in examples]
    result = alignment.alignment(images, [record["claims"] for record in examples])
    assert list(result) == list(alignment.CATEGORIES)
    for category, row in result.items():
        assert row["right"] >= 0.99, category
        assert row["shuffled"] < 0.6, category
    assert result["color"]["num"] == len(examples) > result["size"]["num"]


@pytest.mark.slow
def test_shuffled_prompts_are_right_as_often_as_chance(examples):
    # 8 colors, 7 shapes, 2 sizes, 4 backgrounds: with one object, chance is their inverse.
    single = examples[:NUM]
    assert {record["claims"]["kind"] for record in single} == {"single"}
    claims = [record["claims"] for record in single]
    result = alignment.alignment([record["image"] for record in single], claims)
    for category, choices in (("color", 8), ("shape", 7), ("size", 2), ("background", 4)):
        assert result[category]["shuffled"] == pytest.approx(1 / choices, abs=0.06)


def place(shape, color, x, y=32.0, size="large"):
    return shapes.Object(shape, color, size, (x, y), sum(shapes.SIZES_TOGETHER[size]) / 2)


def picture(*objects, background="white"):
    return shapes.render(shapes.Scene("and", objects, background))


def verdict(image, caption):
    return alignment.score(shape_reading.read(image), shape_captions.parse_caption(caption))


def wrong(image, caption):
    return {category for category, right in verdict(image, caption).items() if not right}


CIRCLE = place("circle", "red", 16.0)
SQUARE = place("square", "blue", 46.0, size="small")
CAPTION = "a large red circle left of a small blue square on a white background"


def test_all_that_a_true_caption_states_is_right():
    result = verdict(picture(CIRCLE, SQUARE), CAPTION)
    assert set(result) == set(alignment.CATEGORIES) - {"count"} and all(result.values())


def test_what_the_caption_leaves_out_is_not_judged():
    result = verdict(picture(CIRCLE), "a red circle")
    assert set(result) == {"color", "shape", "color+shape", "object count", "all"}


@pytest.mark.parametrize(
    ("image", "categories"),
    [
        (picture(dataclasses.replace(CIRCLE, color="green"), SQUARE), {"color", "color+shape"}),
        (picture(dataclasses.replace(CIRCLE, shape="star"), SQUARE), {"shape", "color+shape"}),
        (picture(place("circle", "red", 16.0, size="small"), SQUARE), {"size"}),
        (picture(place("circle", "red", 48.0), place("square", "blue", 16.0, size="small")),
         {"relation"}),
        (picture(place("circle", "red", 28.0, 14.0), place("square", "blue", 36.0, 48.0, "small")),
         {"relation"}),
        (picture(CIRCLE, SQUARE, background="grey"), {"background"}),
        (picture(CIRCLE, SQUARE, place("star", "pink", 40.0, 12.0, "small")), {"object count"}),
        (picture(CIRCLE), {"color", "shape", "color+shape", "size", "relation", "object count"}),
        # Swapped colors, and two objects that cannot be told apart.
        (picture(place("circle", "blue", 16.0), place("square", "red", 46.0, size="small")),
         {"color+shape"}),
        (picture(place("circle", "red", 16.0), place("circle", "red", 46.0)),
         {"color", "shape", "color+shape", "size", "relation"}),
    ],
)  # fmt: skip
def test_a_wrong_picture_fails_in_its_own_category(image, categories):
    assert wrong(image, CAPTION) == categories | {"all"}


def test_counts():
    two = picture(CIRCLE, place("circle", "red", 46.0))
    assert wrong(two, "two red circles") == set()
    assert wrong(two, "a red circle") == {"object count", "all"}
    missing = {"color", "shape", "color+shape", "count", "object count", "all"}
    assert wrong(two, "three red circles") == missing
    assert wrong(picture(CIRCLE, SQUARE), "two red circles") == missing - {"count", "object count"}


def test_a_blank_picture_has_nothing_right():
    result = verdict(picture(background="black"), CAPTION)
    assert not any(result.values())
    assert verdict(picture(background="white"), CAPTION)["background"]


@pytest.mark.parametrize("change", [noisy, halved, specked])
def test_wrong_stays_wrong_and_right_stays_right_in_poor_pictures(change):
    assert wrong(change(picture(CIRCLE, SQUARE)), CAPTION) == set()
    green = picture(dataclasses.replace(CIRCLE, color="green"), SQUARE)
    assert wrong(change(green), CAPTION) == {"color", "color+shape", "all"}


def test_soft_edges_and_faded_colors_are_not_other_colors():
    # Half red and half white is near to pink, as is a dark pink to a light red.
    stars = [halved(picture(place("star", "red", x, 30.0, "small"))) for x in (20.0, 20.7, 21.3)]
    assert all(wrong(image, "a small red star on white") == set() for image in stars)
    faded = dataclasses.replace(place("square", "pink", 30.0), diameter=46.0, tint=(-25, -25, -35))
    assert wrong(picture(faded), "a large pink square") == set()


def test_a_relation_must_hold_however_the_objects_are_matched():
    right = place("circle", "red", 51.0)
    square = place("square", "blue", 32.0, size="small")
    image = picture(place("circle", "red", 13.0), square, right)
    assert wrong(image, CAPTION) == {"relation", "object count", "all"}


def test_noise_is_read_without_complaint():
    rng = np.random.default_rng(0)
    for sigma in (0, 2, 4):
        image = ndimage.gaussian_filter(rng.normal(0, 1, (64, 64, 3)), (sigma, sigma, 0))
        image /= abs(image).max()
        verdict(image, CAPTION)  # any answer will do


def test_alignment_needs_one_caption_for_each_picture(examples):
    claims = [record["claims"] for record in examples[:3]]
    with pytest.raises(ValueError, match="2 pictures and 3 claims"):
        alignment.alignment([record["image"] for record in examples[:2]], claims)
    with pytest.raises(ValueError, match="0 pictures"):
        alignment.alignment([], [])


@pytest.mark.parametrize("size", [32, 64, 256])
def test_results_of_any_size_are_judged(size):
    images = resize.to_size(picture(CIRCLE, SQUARE)[None] / 127.5 - 1, size).astype(np.float32)
    claims = [shape_captions.parse_caption("a red circle left of a blue square")]
    metric = METRICS["alignment"]()
    assert metric.values(Samples(images, ["a"], claims)) == [1]
