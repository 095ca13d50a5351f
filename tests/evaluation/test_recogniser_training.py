"""Training of a recogniser: what it learns from, and that it learns."""

import jax
import numpy as np
import pytest

from imagen_jax.evaluation import recogniser, recogniser_training
from imagen_jax.evaluation.recogniser_training import SIDE, accuracy, contrast, read_pictures
from tests.conftest import write_shapes


def test_each_picture_is_read_once_however_many_captions_it_has(icons):
    pictures = read_pictures(icons, "train")
    assert pictures.images.shape == (28, SIDE, SIDE, 3) and pictures.images.dtype == np.uint8
    assert len(pictures.subjects) == len(pictures.styles) == 28
    assert set(pictures.subjects) == {"red", "green", "blue", "yellow"} and set(pictures.styles) == {"disc", "stripes"}


@pytest.mark.slow
def test_colors_and_styles_are_learned_and_colors_also_in_a_style_that_training_does_not_show(icons, trained):
    found = accuracy(trained, read_pictures(icons, "validation"))
    assert found == {"subject": 1, "subject in top 5": 1, "style": 1, "pictures": 7}
    assert accuracy(trained, read_pictures(icons, "unseen_pairs"))["subject"] == 1


def test_augmented_pictures_differ_and_stay_near_the_range():
    white = np.ones((8, 32, 32, 3), np.float32)
    augment = jax.jit(recogniser_training.augment, static_argnums=2)
    x = augment(jax.random.key(0), white, 32)
    assert x.shape == (8, 32, 32, 3) and abs(1 - x).max() < 0.1
    half = np.where(np.arange(32)[:, None] < 16, 1.0, -1.0)[None, :, :, None] * white
    first, second = (augment(jax.random.key(seed), half, 32) for seed in (1, 2))
    assert abs(first).max() < 2.5 and abs(first - second).mean() > 0.1
    assert (first[:, :4].mean(axis=(1, 2, 3)) > first[:, -4:].mean(axis=(1, 2, 3)) + 0.5).all()


def test_pictures_for_the_styles_keep_their_colors_edges_and_places():
    white = np.ones((16, 32, 32, 3), np.float32)
    augment = jax.jit(recogniser_training.augment_slightly, static_argnums=2)
    assert abs(1 - augment(jax.random.key(0), white, 32)).max() < 0.1
    left = np.where(np.arange(32)[:, None] < 16, [1.0, -1.0, 0.0], 1.0)[None, None] * white
    x = np.asarray(augment(jax.random.key(1), left, 32))
    is_mirrored = x[:, :, -4:, 1].mean(axis=(1, 2)) < 0
    assert 3 < is_mirrored.sum() < 13
    x = np.where(is_mirrored[:, None, None, None], x[:, :, ::-1], x)
    np.testing.assert_allclose(x[:, :, :14], left[:, :, :14], atol=0.2)
    np.testing.assert_allclose(x[:, :, 18:], 1, atol=0.1)
    edges = (x[..., 1].mean(axis=1) < 0).sum(axis=-1)
    assert set(edges) == {15, 16, 17}  # whole pixels of shift


def test_pictures_are_blended_with_those_of_their_own_label_alone():
    images = np.eye(64, dtype=np.float32)[:, :, None, None]
    x = np.asarray(recogniser_training.blend(jax.random.key(0), images, np.arange(64) // 4))
    np.testing.assert_allclose(x.sum(axis=(1, 2, 3)), 1, rtol=1e-6)
    others = (x > 0).sum(axis=(1, 2, 3)) - 1
    assert 4 < others.sum() < 32 and (x.diagonal()[0, 0] >= 0.5).all() and others[3::4].sum() == 0


def test_contrast_is_lowest_where_subjects_stand_together():
    labels = np.array([0, 0, 1, 1, 2])
    apart, together = np.eye(8, dtype=np.float32)[:5], np.eye(8, dtype=np.float32)[labels]
    assert contrast(together, labels) < 0.01 < contrast(apart, labels)
    np.testing.assert_allclose(contrast(apart, labels), np.log(4), rtol=1e-5)  # all four others are alike
    assert contrast(apart, np.arange(5)) == 0


def test_other_data_are_refused(icons, tmp_path):
    with pytest.raises(ValueError, match="--data must be a data set of icons, with subject and style; got"):
        read_pictures(write_shapes(tmp_path / "shapes", train=2), "train")
    with pytest.raises(ValueError, match="unseen_subjects"):
        read_pictures(icons, "unseen_subjects")


def test_the_command_prints_the_accuracy(icons, trained, load_script, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(recogniser_training, "train", lambda pictures, epochs, seed: trained)
    command = load_script("train_recogniser")
    command.main(command.Options(data=icons, output=tmp_path / "out"))
    out = capsys.readouterr().out
    assert "| unseen_pairs | 100.0 | 100.0 | " in out and "28 pictures of 4 subjects in 2 styles" in out
    loaded = recogniser.load(tmp_path / "out", "--recogniser")
    assert loaded.config == trained.config and list(loaded.accuracy) == ["validation", "unseen_pairs"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(recogniser.FILES)
