"""The network of a recogniser and its files."""

import json

import jax
import numpy as np
import pytest

from imagen_jax.evaluation import recogniser
from imagen_jax.evaluation.recogniser import CONFIG_FILE, WEIGHT_FILE, Config, Network


def test_size_of_the_network():
    """About a million parameters, and some 7 million multiplications and additions a picture."""
    config = Config(tuple(map(str, range(1628))), tuple("abcde"))
    shapes = jax.eval_shape(lambda: recogniser.init(config, jax.random.key(0)))
    assert 5e5 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 1.5e6
    pixels = jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32)
    cost = jax.jit(Network(config).apply).lower(shapes, pixels).cost_analysis()
    assert cost["flops"] < 16e6


def test_style_statistics_are_shares_of_colors_steps_and_extent():
    image = np.ones((1, 16, 16, 3), np.float32)
    image[:, 2:10, 4:12] = [1, -1, -1]  # a red square on white
    found = np.asarray(recogniser.style_statistics(image))[0] ** 2
    bins, steps = recogniser._BINS, recogniser._STEP_BINS
    colors, found = found[: bins**3].reshape(bins, bins, bins), found[bins**3 :]
    np.testing.assert_allclose([colors[-1, -1, -1], colors[-1, 0, 0]], [0.75, 0.25], rtol=1e-5)
    overall, inside, columns, rows = np.split(found, [steps, 2 * steps, 2 * steps + 16])
    # 8 pixels along each side have a step below or to the right, one of them both; there are 15 x 15 and 8 x 8 pixels.
    np.testing.assert_allclose([overall[-1], overall[0]], [31 / 225, 194 / 225], rtol=1e-2)
    np.testing.assert_allclose([inside[-1], inside[0]], [15 / 65, 49 / 65], rtol=1e-2)
    assert columns.tolist() == [0] * 4 + [1] * 8 + [0] * 4 and rows.tolist() == [0] * 2 + [1] * 8 + [0] * 6


def test_a_color_between_bins_counts_in_those_around_it():
    width = 2 / (recogniser._BINS - 1)
    image = np.full((1, 16, 16, 3), -1 + 0.25 * width, np.float32)
    colors = np.asarray(recogniser.style_statistics(image))[0, : recogniser._BINS**3].reshape(3 * [recogniser._BINS])
    shares = np.array([0.75, 0.25])
    np.testing.assert_allclose(colors[:2, :2, :2] ** 2, np.einsum("i,j,k->ijk", shares, shares, shares), rtol=1e-4)
    assert (colors > 0).sum() == 8


@pytest.fixture(scope="module")
def random():
    """A recogniser of 16x16 pixels with random parameters."""
    config = Config(("red", "green", "blue", "yellow"), ("disc", "stripes"), size=16)
    return recogniser.Recogniser(config, recogniser.init(config, jax.random.key(0)), {})


@pytest.mark.slow
def test_what_is_saved_is_loaded(random, tmp_path):
    rows = {"validation": {"subject": 0.5, "subject in top 5": 1.0, "style": 0.25, "pictures": 8}}
    recogniser.Recogniser(random.config, random.params, rows).save(tmp_path / "r")
    loaded = recogniser.load(tmp_path / "r", "--recogniser")
    assert loaded.config == random.config and loaded.accuracy == rows
    images = np.random.default_rng(0).uniform(-1, 1, (3, 24, 24, 3)).astype(np.float32)
    for one, other in zip(loaded.logits(images), random.logits(images), strict=True):
        np.testing.assert_array_equal(one, other)
    assert "| validation | 50.0 | 100.0 | 25.0 | 8 |" in recogniser.accuracy_table(loaded.accuracy)


@pytest.mark.slow
def test_answers_are_the_likeliest_names_whatever_the_size(random):
    images = np.random.default_rng(0).uniform(-1, 1, (2, 4, 4, 3)).astype(np.float32)
    subjects, styles = random.logits(images)
    for answer, of_subjects, of_styles in zip(random.answers(images), subjects, styles, strict=True):
        assert answer.subjects == tuple(np.array(random.config.subjects)[np.argsort(-of_subjects)])
        assert answer.style == random.config.styles[of_styles.argmax()]
    enlarged = np.repeat(np.repeat(images, 16, axis=1), 16, axis=2)  # more pixels than the network takes
    assert random.logits(enlarged)[0].shape == (2, 4)


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
        (edit(lambda data: data.pop("styles")), "styles, size, version, accuracy, sha256; got none of styles"),
        (edit(lambda data: data.pop("version")), "got none of version: train one with imagen-jax recogniser"),
        (edit(lambda data: data.update(version=1)), "recogniser.json: version must be 2; got 1: train one"),
        (edit(lambda data: data["subjects"].append("1f408")), "be of shape"),
        (edit(lambda data: data["subjects"].append(3)), "recogniser.json: subjects must be different names"),
        (edit(lambda data: data.update(size=17)), "recogniser.json: size must be a multiple of 16; got 17"),
        (edit(lambda data: data.update(accuracy={"a": {}})), "recogniser.json: accuracy must have the numbers"),
    ],
)  # fmt: skip
def test_a_damaged_recogniser_is_one_line(random, tmp_path, damage, message):
    random.save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        recogniser.load(tmp_path, "--recogniser")
    assert "\n" not in str(error.value)
