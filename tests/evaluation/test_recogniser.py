"""The network of a recogniser and its files."""

import json

import jax
import numpy as np
import pytest

from imagen_jax.evaluation import recogniser
from imagen_jax.evaluation.recogniser import CONFIG_FILE, WEIGHT_FILE, Config, Network


def test_size_of_the_network():
    """About a million parameters, and some 9 million multiplications and additions a picture."""
    config = Config(tuple(map(str, range(1628))), tuple("abcde"))
    shapes = jax.eval_shape(lambda: recogniser.init(config, jax.random.key(0)))
    assert 5e5 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 1.5e6
    pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    cost = jax.jit(Network(config).apply).lower(shapes, pixels).cost_analysis()
    assert cost["flops"] < 22e6


@pytest.mark.slow
def test_what_is_saved_is_loaded(trained, tmp_path):
    rows = {"validation": {"subject": 0.5, "subject in top 5": 1.0, "style": 0.25, "pictures": 8}}
    recogniser.Recogniser(trained.config, trained.params, rows).save(tmp_path / "r")
    loaded = recogniser.load(tmp_path / "r", "--recogniser")
    assert loaded.config == trained.config and loaded.accuracy == rows
    images = np.random.default_rng(0).uniform(-1, 1, (3, 24, 24, 3)).astype(np.float32)
    for one, other in zip(loaded.logits(images), trained.logits(images), strict=True):
        np.testing.assert_array_equal(one, other)
    assert "| validation | 50.0 | 100.0 | 25.0 | 8 |" in recogniser.accuracy_table(loaded.accuracy)


@pytest.mark.slow
def test_answers_are_the_likeliest_names_whatever_the_size(trained):
    images = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)
    subjects, styles = trained.logits(images)
    for answer, of_subjects, of_styles in zip(trained.answers(images), subjects, styles, strict=True):
        assert answer.subjects == tuple(np.array(trained.config.subjects)[np.argsort(-of_subjects)])
        assert answer.style == trained.config.styles[of_styles.argmax()]
    enlarged = np.repeat(np.repeat(images, 16, axis=1), 16, axis=2)  # more pixels than the network takes
    assert trained.logits(enlarged)[0].shape == (2, 4)


def edit(change):
    def apply(folder):
        data = json.loads((folder / CONFIG_FILE).read_text())
        change(data)
        (folder / CONFIG_FILE).write_text(json.dumps(data))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / CONFIG_FILE).unlink(), "--recogniser must be the directory of a recogniser; got"),
        (lambda folder: (folder / CONFIG_FILE).write_text("{"), "recogniser.json must hold JSON; got"),
        (lambda folder: (folder / CONFIG_FILE).write_text("[]"), "recogniser.json: the content must be an object"),
        (lambda folder: (folder / WEIGHT_FILE).unlink(), "--recogniser must be a recogniser; got"),
        (lambda folder: (folder / WEIGHT_FILE).write_bytes(b"x" * 64), "must be what recogniser.json was written with"),
        (edit(lambda data: data.pop("styles")), "the content must have subjects, styles, size, accuracy, sha256; got"),
        (edit(lambda data: data["subjects"].append("1f408")), "be of shape"),
        (edit(lambda data: data["subjects"].append(3)), "recogniser.json: subjects must be different names"),
        (edit(lambda data: data.update(size=17)), "recogniser.json: size must be a multiple of 16; got 17"),
        (edit(lambda data: data.update(accuracy={"a": {}})), "recogniser.json: accuracy must have the numbers"),
    ],
)  # fmt: skip
def test_a_damaged_recogniser_is_one_line(trained, tmp_path, damage, message):
    trained.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        recogniser.load(tmp_path, "--recogniser")
    assert "\n" not in str(error.value)
