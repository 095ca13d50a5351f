"""Captions of shapes: varied sentences that are read back as the claims that they make."""

import itertools
import json

import numpy as np
import pytest

from imagen_jax.prepare import shape_captions, shapes

STREAMS = list(itertools.product(shapes.SPLITS, shapes.PARTS))


@pytest.mark.parametrize(("split", "part"), STREAMS)
def test_captions_read_back_as_their_claims(split, part):
    for i in range(500):
        rng = np.random.default_rng(i)
        claims = shapes.claims_of(shapes.scene(i, split, part), rng)
        caption = shape_captions.caption_of(claims, rng)
        assert shape_captions.parse_caption(caption) == claims, caption
        assert json.loads(json.dumps(claims)) == claims


def test_captions_are_varied_and_grammatical():
    captions = [shape_captions.caption_of(shapes.claims_of(shapes.scene(i), rng), rng)
                for i in range(1000) for rng in [np.random.default_rng(i)]]  # fmt: skip
    assert len(set(captions)) > 900
    words = set(" ".join(captions).replace(",", "").split())
    for table in (shape_captions.SHAPE_WORDS, shape_captions.COLOR_WORDS, shape_captions.SIZE_WORDS):
        for synonym in itertools.chain(*table.values()):
            assert set(synonym.split()) <= words
    plurals = set()
    for caption in captions:
        tokens = caption.replace(",", "").split()
        for article, word in itertools.pairwise(tokens):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou"), caption
        several = {"two", "three", "pair", "couple", "trio"} & set(tokens)
        nouns = [t for t in tokens if t.rstrip("es") in ("circl", "box", "star", "ring", "cro")]
        assert all(noun.endswith("s") and noun != "cross" for noun in nouns if several), caption
        plurals |= set(nouns) if several else set()
        assert not ("there are" in caption and not several), caption
    assert {"circles", "boxes", "stars", "rings", "crosses"} <= plurals


def claim(shape, color, size=None, count=1):
    return {"shape": shape, "color": color, "size": size, "count": count}


@pytest.mark.parametrize(
    ("caption", "kind", "objects", "relation", "background"),
    [
        ("A tiny red disc on a white background.", "single", [claim("circle", "red", "small")],
         None, "white"),
        ("an image of an orange plus sign to the left of a big blue donut", "relation",
         [claim("cross", "orange"), claim("ring", "blue", "large")], "left of", None),
        ("there are 3 violet boxes against a gray background", "count",
         [claim("square", "purple", count=3)], None, "grey"),
        ("a pink heart, a green star, and a cyan triangle", "and",
         [claim("heart", "pink"), claim("star", "green"), claim("triangle", "cyan")], None, None),
        ("a red star and two green rings", "and",
         [claim("star", "red"), claim("ring", "green", count=2)], None, None),
        ("the red star is beneath the yellow square on brown", "relation",
         [claim("star", "red"), claim("square", "yellow")], "below", "brown"),
    ],
)  # fmt: skip
def test_prompts_that_people_type(caption, kind, objects, relation, background):
    assert shape_captions.parse_caption(caption) == {
        "kind": kind, "objects": objects, "relation": relation, "background": background,
    }  # fmt: skip


@pytest.mark.parametrize(
    "caption",
    ["", "a dog", "a circle", "a red", "a red circle on", "two red stars left of a blue ring",
     "a red circle left of a blue ring left of a pink heart", "a red circle on a pink background"],
)  # fmt: skip
def test_other_prompts_have_no_claims(caption):
    assert shape_captions.parse_caption(caption) is None


def test_claims_of_other_data_sets_are_not_of_shapes():
    assert shape_captions.are_claims(shape_captions.parse_caption("a red circle"))
    assert not shape_captions.are_claims({"subject": "1f6aa", "name": "door", "style": "noto v1"})
    assert not shape_captions.are_claims(None)
