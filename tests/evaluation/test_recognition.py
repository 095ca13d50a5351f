"""The metric of icons: what counts as right, and which data it takes."""

import dataclasses

import numpy as np
import pytest

from imagen_jax.evaluation import Models, Samples, build, missing
from imagen_jax.evaluation.recognition import Recognition
from tests.evaluation.conftest import COLORS, STYLES, UNSEEN, draw

RIGHT = [
    {"subject": color, "name": color, "style": style}
    for color in COLORS for style in STYLES if (color, style) != UNSEEN
]  # fmt: skip


@pytest.fixture
def samples():
    images = np.stack([draw(claims["subject"], claims["style"], (0, 0)) for claims in RIGHT])
    return Samples(images.astype(np.float32) / 127.5 - 1, [claims["name"] for claims in RIGHT], RIGHT)


def total(metric, samples):
    return metric.result(metric.update(metric.init(), samples))


def test_true_pictures_are_right_and_shuffled_ones_are_chance(trained, samples):
    metric = Recognition(trained)
    np.testing.assert_array_equal(metric.values(samples), np.ones(7))
    result = total(metric, samples)
    assert {name: (row["right"], row["num"]) for name, row in result.items()} == dict.fromkeys(
        ("subject", "subject in top 5", "style"), (1.0, 7)
    )
    assert result["subject"]["shuffled"] == pytest.approx(1 / 7) and result["style"]["shuffled"] == pytest.approx(3 / 7)


def test_batches_do_not_change_it(trained, samples):
    metric, state = Recognition(trained), ()
    for i in range(7):
        state = metric.update(state, Samples(samples.images[i : i + 1], [""], RIGHT[i : i + 1]))
    assert metric.result(state) == total(metric, samples)


def test_wrong_and_unknown_subjects(trained, samples):
    claims = [dict(row) for row in RIGHT]
    claims[0]["subject"], claims[1]["subject"], claims[2]["style"] = "blue", "unknown", "stripes"
    metric, changed = Recognition(trained), dataclasses.replace(samples, claims=claims)
    np.testing.assert_array_equal(metric.values(changed), [0.5, 1, 0.5, 1, 1, 1, 1])
    result = total(metric, changed)
    assert result["subject"]["num"] == 6 and result["subject"]["right"] == pytest.approx(5 / 6)
    assert result["style"]["num"] == 7 and result["style"]["right"] == pytest.approx(6 / 7)
    report = metric.report(result)
    assert "| subject | 83.3 |" in report and "1 of 7 prompts have subjects that the recogniser does not know" in report
    assert "does not know" not in metric.report(total(metric, samples))


def test_it_is_built_from_files_and_reads_claims_of_icons_alone(trained, samples, tmp_path):
    trained.save(tmp_path)
    metric = build("recognition", Models(recogniser=tmp_path))
    np.testing.assert_array_equal(metric.values(samples), np.ones(7))
    given = {"recogniser": tmp_path, "claims": RIGHT[0]}
    assert missing("recognition", given) is None
    assert missing("recognition", given | {"claims": {"objects": []}}) == "claims"
    assert missing("recognition", {"claims": RIGHT[0]}) == "recogniser"


def test_a_recogniser_of_other_styles_or_subjects_is_refused(trained):
    metric = Recognition(trained)
    metric.check_claims(RIGHT, "--data")
    with pytest.raises(ValueError, match="--data must have styles of the recogniser, disc, stripes; got noto: train"):
        metric.check_claims([*RIGHT, {"subject": "red", "style": "noto"}], "--data")
