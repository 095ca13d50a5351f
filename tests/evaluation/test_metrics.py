"""The registry of metrics, and their statistics over batches."""

import numpy as np
import pytest

from imagen_jax import resize
from imagen_jax.evaluation import METRICS, Metric, Samples, alignment, frechet, metrics, sweep
from imagen_jax.evaluation.metrics import Models, build, check_models, check_needs, missing, needs
from imagen_jax.prepare import shapes

NUM = 12


@pytest.fixture
def registry(monkeypatch):
    """METRICS, whose new entries are gone after the test."""
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    return METRICS


@pytest.fixture(scope="module")
def samples():
    """Twelve pictures of shapes as results, with others as their reference."""
    examples = [shapes.example(i) for i in range(2 * NUM)]
    x = np.stack([example["image"] for example in examples]).astype(np.float32) / 127.5 - 1
    captions, claims = ([example[key] for example in examples[:NUM]] for key in ("caption", "claims"))
    return Samples(x[:NUM], captions, claims, x[NUM:], np.asarray(resize.area(x[:NUM], 16)) + 0.01)


def of_rows(samples, rows):
    parts = {name: value[rows] for name, value in vars(samples).items()}
    return Samples(**parts)


def total(metric, samples, size):
    state = metric.init()
    for start in range(0, NUM, size):
        state = metric.update(state, of_rows(samples, slice(start, start + size)))
    return metric.result(state)


def test_built_in_metrics_and_what_they_need():
    assert {name: needs(name) for name in METRICS} == {
        "alignment": ("claims",), "clip": ("clip",), "frechet": ("reference",), "consistency": ("low_res",),
        "recognition": ("claims", "recogniser"),
    }  # fmt: skip
    assert [name for name in METRICS if not metrics.is_per_picture(name)] == ["frechet"]


def test_metrics_are_the_functions_they_are_named_after(samples):
    assert total(build("alignment"), samples, NUM) == alignment.alignment(samples.images, samples.claims)
    distance = frechet.distance(samples.images, samples.reference)
    assert total(build("frechet"), samples, NUM) == distance
    assert total(build("consistency"), samples, NUM) == sweep.consistency(samples.low_res, samples.images).mean()


@pytest.mark.parametrize("name", ["alignment", "frechet", "consistency"])
def test_batches_do_not_change_a_metric(samples, name):
    metric = build(name)
    whole = total(metric, samples, NUM)
    for size in (1, 5):
        if name == "alignment":
            assert total(metric, samples, size) == whole
        else:
            np.testing.assert_allclose(total(metric, samples, size), whole, rtol=1e-6)


def test_the_value_of_a_picture_is_the_share_of_claims_that_it_fulfils(samples):
    values = build("alignment").values(samples)
    assert values.shape == (NUM,) and (values == 1).all()
    small = Samples(np.asarray(resize.area(samples.images, 32)), samples.captions, samples.claims)
    assert build("alignment").values(small).shape == (NUM,)  # enlarged first


def test_a_function_and_a_class_register_in_a_few_lines(registry, samples):
    @registry.register("brightness")
    def brightness(batch):
        return batch.images.mean(axis=(1, 2, 3))

    @registry.register("largest")
    class Largest(Metric):
        def init(self):
            return -np.inf

        def update(self, state, batch):
            return max(state, batch.images.max())

        def result(self, state):
            return float(state)

    assert needs("brightness") == () and metrics.is_per_picture("brightness")
    assert not metrics.is_per_picture("largest")
    np.testing.assert_allclose(total(build("brightness"), samples, 5), samples.images.mean(), rtol=1e-6)
    metric = build("largest")
    assert total(metric, samples, 5) == samples.images.max()
    assert metric.report(0.25) == "largest: 0.25"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alignment", "--score alignment must come with --data of a data set of shapes"),
        ("frechet", "--score frechet must come with --data; got none."),
        ("clip", "--score clip must come with --clip; got none."),
        ("consistency", "--score consistency must come with a cascade that has a super-resolution stage; got none."),
    ],
)
def test_what_a_metric_needs_is_named_by_its_option(name, message):
    with pytest.raises(ValueError, match=message):
        check_needs("--score", name, {"claims": None})
    check_needs("--score", name, {"claims": {"objects": []}, "reference": True, "clip": "a", "low_res": True})


def test_claims_of_other_data_are_not_read():
    icon = {"claims": {"subject": "1f408", "name": "cat", "style": "noto"}}
    assert missing("alignment", icon) == "claims" and missing("frechet", {"reference": 1}) is None
    with pytest.raises(ValueError, match="--data of a data set of shapes, which records what captions claim; got d."):
        check_needs("--metrics", "alignment", icon, "d")


def test_a_model_without_a_metric_that_uses_it_is_refused():
    check_models(Models(clip="c"), ["consistency", "clip"])
    check_models(Models(), [])
    with pytest.raises(ValueError, match="--clip must be left out without the metric clip; got 'c'."):
        check_models(Models(clip="c"), ["consistency"])


def test_an_unknown_metric_is_refused():
    with pytest.raises(ValueError, match="metric must be one of .*consistency.*; got 'fid'"):
        build("fid")


def test_a_distance_takes_two_pictures():
    two = {"reference": True, "num": 2}
    check_needs("--metrics", "frechet", two)
    assert missing("frechet", two | {"num": 1}) == "num"
    with pytest.raises(ValueError, match="--metrics frechet must come with --num of at least 2; got 1"):
        check_needs("--metrics", "frechet", two | {"num": 1})
