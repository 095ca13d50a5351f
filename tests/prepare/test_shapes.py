import itertools
from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from imagen_jax.prepare import shapes

STREAMS = list(itertools.product(shapes.SPLITS, shapes.PARTS))


def test_examples_are_a_function_of_part_split_and_index():
    for split, part in STREAMS:
        first = list(shapes.examples(split, part, 5))
        again = shapes.example(4, split, part)
        assert np.array_equal(first[4]["image"], again["image"])
        assert (first[4]["caption"], first[4]["claims"]) == (again["caption"], again["claims"])
        assert np.array_equal(shapes.render(shapes.scene(4, split, part)), again["image"])
    pictures = [shapes.example(i, *stream)["image"] for stream in STREAMS for i in range(20)]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)
    assert pictures[0].shape == (64, 64, 3) and pictures[0].dtype == np.uint8


@pytest.mark.parametrize("wrong", [{"part": "pairs"}, {"split": "val"}, {"index": -1}])
def test_unknown_streams_are_refused(wrong):
    with pytest.raises(ValueError, match="part must be one of"):
        shapes.example(**{"index": 0, "split": "train", "part": "full", **wrong})


def test_held_out_pairs_are_a_seventh_and_spread_out():
    colors, held_shapes = zip(*shapes.HELD_OUT, strict=True)
    assert Counter(colors) == dict.fromkeys(shapes.COLORS, 1)
    assert set(held_shapes) == set(shapes.SHAPES)
    assert 7 * len(shapes.HELD_OUT) == len(shapes.COLORS) * len(shapes.SHAPES)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("part", shapes.PARTS)
def test_training_shows_every_other_pair_and_no_held_out_one(split, part):
    scenes = [shapes.scene(i, split, part) for i in range(1500)]
    shown = Counter((o.color, o.shape) for scene in scenes for o in scene.objects)
    every = set(itertools.product(shapes.COLORS, shapes.SHAPES))
    assert set(shown) == every - shapes.HELD_OUT
    for i, names in enumerate((shapes.COLORS, shapes.SHAPES)):
        share = Counter(pair[i] for pair in shown.elements())
        assert min(share.values()) > 0.6 * shown.total() / len(names)


@pytest.mark.parametrize("part", shapes.PARTS)
def test_test_split_asks_for_held_out_pairs(part):
    for i in range(600):
        scene = shapes.scene(i, "test", part)
        held = [(o.color, o.shape) in shapes.HELD_OUT for o in scene.objects]
        assert all(held) if scene.kind in ("single", "count") else any(held)


def test_kinds_come_in_the_documented_proportions():
    kinds = Counter(shapes.scene(i).kind for i in range(2000))
    for kind, share in shapes.KINDS.items():
        assert abs(kinds[kind] / 2000 - share) < 0.04  # four standard deviations
    assert {shapes.scene(i, part="single").kind for i in range(200)} == {"single"}


def test_scenes_are_what_their_kind_says():
    for i in range(1500):
        scene = shapes.scene(i)
        pairs = {(o.color, o.shape) for o in scene.objects}
        num = len(scene.objects)
        assert (num, len(pairs)) in {
            "single": {(1, 1)}, "relation": {(2, 2)}, "count": {(2, 1), (3, 1)},
            "and": {(2, 2), (3, 3)},
        }[scene.kind]  # fmt: skip
        assert (scene.relation is not None) == (scene.kind == "relation")
        if scene.kind == "count":
            assert len({o.size for o in scene.objects}) == 1
        if scene.relation:
            dx, dy = np.subtract(scene.objects[1].center, scene.objects[0].center)
            clear = {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[scene.relation]
            assert clear > 12 and clear > 1.5 * min(abs(dx), abs(dy))


def test_parts_of_relations_show_nothing_else():
    for part in ("relations", "halves"):
        assert {shapes.scene(i, part=part).kind for i in range(200)} == {"relation"}


def test_halves_have_an_object_in_the_middle_of_each_and_captions_tell_all():
    seen = Counter()
    for i in range(200):
        record = shapes.example(i, part="halves")
        scene, claims = shapes.scene(i, part="halves"), record["claims"]
        assert claims["background"] == scene.background
        axis = 0 if scene.relation in ("left of", "right of") else 1
        first, second = (thing.center[axis] for thing in scene.objects)
        assert (first, second) == ((16, 48) if scene.relation in ("left of", "above") else (48, 16))
        seen[scene.relation] += 1
    assert min(seen.values()) > 30 and len(seen) == 4


@pytest.mark.parametrize("part", ["full", "halves"])
def test_objects_stay_inside_and_apart(part):
    for i in range(400 if part == "full" else 100):
        scene = shapes.scene(i, part=part)
        covers = np.zeros((len(scene.objects), 64, 64))
        for cover, thing in zip(covers, scene.objects, strict=True):
            sizes = shapes.sizes(len(scene.objects)) if part == "full" else shapes.SIZES_OF_HALVES
            low, high = sizes[thing.size]
            assert low <= thing.diameter <= high
            where, share = shapes.coverage(thing)
            cover[where] = share
            # Nothing is cut off: a bigger canvas shows no more of it.
            centre = tuple(c + 32 for c in thing.center)
            moved = shapes.Object(thing.shape, "", "", centre, thing.diameter, thing.angle)
            assert shapes.coverage(moved, size=128)[1].sum() == pytest.approx(cover.sum())
        assert (covers > 0).sum(axis=0).max() == 1
        assert ndimage.label(covers.max(axis=0) > 0.5, np.ones((3, 3)))[1] == len(scene.objects)


@pytest.mark.parametrize("shape", shapes.SHAPES)
def test_shapes_lie_within_their_reach(shape):
    u, v = np.meshgrid(*[np.linspace(-1.5, 1.5, 601)] * 2)
    farthest = np.hypot(u, v)[shapes.inside(shape, u, v)].max()
    assert 0.97 * shapes.REACH[shape] < farthest <= shapes.REACH[shape]


def test_colors_are_drawn_as_named_and_edges_are_soft():
    disc = shapes.Object("circle", "red", "large", (32.0, 32.0), 22.0)
    image = shapes.render(shapes.Scene("single", (disc,), "white", tint=(0, -5, 0)))
    assert tuple(image[32, 32]) == shapes.COLORS["red"]
    assert tuple(image[0, 0]) == (255, 250, 255)
    edge = image[32, :, 1].astype(int)
    assert (np.diff(edge[:32]) <= 0).all() and len(set(edge)) >= 2
    # Half of the soft pixels' red is the disc's: the area is the disc's to 1%.
    covered = (250 - image[..., 1].astype(float)).sum() / (250 - shapes.COLORS["red"][1])
    assert covered == pytest.approx(np.pi * 11**2, rel=0.01)


def test_claims_say_no_more_than_the_scene():
    sizes, backgrounds = Counter(), Counter()
    for i in range(600):
        scene = shapes.scene(i)
        claims = shapes.claims_of(scene, np.random.default_rng(i))
        assert claims["relation"] == scene.relation and claims["kind"] == scene.kind
        assert claims["background"] in (None, scene.background)
        backgrounds[claims["background"] is None] += 1
        assert sum(claim["count"] for claim in claims["objects"]) == len(scene.objects)
        for claim, thing in zip(claims["objects"], scene.objects, strict=scene.kind != "count"):
            assert (claim["shape"], claim["color"]) == (thing.shape, thing.color)
            assert claim["size"] in (None, thing.size)
            sizes[claim["size"] is None] += 1
    # Both are mentioned often enough to be learned, and left out often enough to be free.
    for told in (sizes, backgrounds):
        assert 0.25 < told[True] / told.total() < 0.75
