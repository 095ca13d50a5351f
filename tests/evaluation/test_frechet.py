import numpy as np
import pytest
from scipy import ndimage

from imagen_jax.data import transforms
from imagen_jax.evaluation import frechet
from imagen_jax.prepare import shapes

NUM = 300


@pytest.fixture(scope="module")
def pictures():
    records = shapes.examples("train", "single", 3 * NUM)
    return np.stack([transforms.to_unit(record["image"]) for record in records])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def covariance(rng, size, rank=None):
    factor = rng.normal(size=(size, rank or size))
    return factor @ factor.T


def rotation(rng, size):
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


# ---- Gaussians ----


def test_diagonal_gaussians(rng):
    a, b = rng.uniform(0.1, 3, (2, 7))
    mean_a, mean_b = rng.normal(size=(2, 7))
    expected = ((mean_a - mean_b) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet.frechet_distance(mean_a, np.diag(a), mean_b, np.diag(b))
    assert type(found) is float and found == pytest.approx(expected, rel=1e-12)


def test_covariances_that_commute(rng):
    # One set of axes, other variances along them: as if both were diagonal.
    axes, (a, b) = rotation(rng, 9), rng.uniform(0, 3, (2, 9))
    expected = ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet.frechet_distance(np.zeros(9), (axes * a) @ axes.T, np.zeros(9), (axes * b) @ axes.T)
    assert found == pytest.approx(expected, rel=1e-10)


def test_two_by_two(rng):
    # tr (A B)^(1/2) of 2x2 matrices is sqrt(tr(A B) + 2 sqrt(det(A B))).
    a, b = covariance(rng, 2), covariance(rng, 2)
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    found = frechet.frechet_distance([0, 0], a, [1, 2], b)
    assert found == pytest.approx(5 + np.trace(a) + np.trace(b) - 2 * cross, rel=1e-12)


@pytest.mark.parametrize("rank", [1, 5, 30])
def test_equal_gaussians_are_at_zero(rng, rank):
    cov = covariance(rng, 30, rank)
    assert 0 <= frechet.frechet_distance(np.ones(30), cov, np.ones(30), cov) < 1e-11 * np.trace(cov)


def test_singular_covariances(rng):
    # Two lines u and v: tr (A B)^(1/2) = |u . v|. A point has no variance at all.
    u, v = rng.normal(size=(2, 6))
    zero, lines = np.zeros(6), (np.outer(u, u), np.outer(v, v))
    found = frechet.frechet_distance(zero, lines[0], zero, lines[1])
    assert found == pytest.approx(u @ u + v @ v - 2 * abs(u @ v), rel=1e-12)
    found = frechet.frechet_distance(zero, np.zeros((6, 6)), u, lines[1])
    assert found == pytest.approx(u @ u + v @ v, rel=1e-12)
    full = covariance(rng, 6)
    found = frechet.frechet_distance(zero, lines[0], zero, full)
    assert found == pytest.approx(u @ u + np.trace(full) - 2 * np.sqrt(u @ full @ u), rel=1e-10)


@pytest.mark.parametrize("rank", [2, 6])
def test_symmetric_and_the_same_in_rotated_axes(rng, rank):
    a, b, axes = covariance(rng, 6, rank), covariance(rng, 6), rotation(rng, 6)
    mean_a, mean_b = rng.normal(size=(2, 6))
    expected = frechet.frechet_distance(mean_a, a, mean_b, b)
    assert frechet.frechet_distance(mean_b, b, mean_a, a) == pytest.approx(expected, rel=1e-10)
    turned = frechet.frechet_distance(axes @ mean_a, axes @ a @ axes.T, axes @ mean_b, axes @ b @ axes.T)
    assert turned == pytest.approx(expected, rel=1e-10)


def test_what_is_no_gaussian_is_refused():
    mean, cov = np.zeros(3), np.eye(3)
    for a, b, message in (
        ((mean, cov), (np.zeros(2), np.eye(2)), "as many features; got 3 and 2"),
        ((mean, np.eye(2)), (mean, cov), r"covariance \[D, D\]; got \(3,\) and \(2, 2\)"),
        ((mean, np.ones(3)), (mean, cov), r"got \(3,\) and \(3,\)"),
        ((mean, cov), (mean + np.nan, cov), "must be finite"),
        ((mean, cov + np.inf), (mean, cov), "must be finite"),
        ((mean, cov), (mean, np.triu(np.ones((3, 3)))), "must be symmetric"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            frechet.frechet_distance(*a, *b)
        assert "\n" not in str(error.value)


def test_statistics(rng):
    features = rng.normal(size=(50, 4)).astype(np.float32)
    mean, cov = frechet.statistics(features)
    assert mean.dtype == cov.dtype == np.float64
    np.testing.assert_allclose(mean, features.mean(axis=0), rtol=0, atol=1e-6)
    np.testing.assert_allclose(cov, np.cov(features.T.astype(np.float64)), rtol=0, atol=1e-12)
    assert frechet.statistics(features[:2, :1])[1].shape == (1, 1)
    with pytest.raises(ValueError, match=r"N at least 2; got shape \(1, 4\)"):
        frechet.statistics(features[:1])
    with pytest.raises(ValueError, match=r"got shape \(50,\)"):
        frechet.statistics(features[:, 0])
    with pytest.raises(ValueError, match="must be finite"):
        frechet.statistics(np.where(features > 2, np.inf, features))


# ---- pictures ----


def test_features_are_layout_and_detail(rng):
    plain = rng.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    large = plain.repeat(8, axis=1).repeat(8, axis=2)  # nothing but layout
    features = frechet.picture_features(large)
    assert features.shape == (2, 240) and features.dtype == np.float32
    np.testing.assert_allclose(features[:, :192], plain.reshape(2, -1), rtol=0, atol=1e-6)
    np.testing.assert_allclose(features[:, 192:], 0, rtol=0, atol=1e-5)
    # A checkerboard of +-0.25 in one tile and channel: a standard deviation of 0.25 there.
    board = 0.25 * (-1.0) ** np.add.outer(np.arange(16), np.arange(16))
    large[:, 16:32, 48:64, 1] += board.astype(np.float32)
    changed = frechet.picture_features(large) - features
    expected = np.zeros((2, 4, 4, 3))
    expected[:, 1, 3, 1] = 0.25 * frechet.DETAIL_WEIGHT
    np.testing.assert_allclose(changed[:, :192], 0, rtol=0, atol=1e-6)
    np.testing.assert_allclose(changed[:, 192:], expected.reshape(2, -1), rtol=0, atol=1e-5)
    assert frechet.picture_features(np.zeros((1, 16, 40, 1))).shape == (1, 80)


def test_features_do_not_depend_on_the_batch(pictures, monkeypatch):
    whole = frechet.picture_features(pictures[:10])
    monkeypatch.setattr(frechet, "_BATCH_SIZE", 4)
    np.testing.assert_allclose(frechet.picture_features(pictures[:10]), whole, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_blur_noise_and_a_missing_mode_are_farther(pictures, rng):
    grey = pictures.mean(axis=-1, keepdims=True)  # D = 80, so that 300 pictures are several times D
    real, others = grey[:NUM], grey[NUM:]
    noise = rng.normal(size=(NUM, *real.shape[1:])).astype(np.float32)
    is_white = others[:, 0, 0, 0] > 0.9
    white, rest = others[is_white], others[~is_white]
    usual = int(NUM * is_white.mean())
    for changed in (
        [ndimage.gaussian_filter(others[:NUM], (0, sigma, sigma, 0)) for sigma in (0, 0.5, 1, 2)],
        [others[:NUM] + scale * noise for scale in (0, 0.03, 0.06, 0.12)],
        [np.concatenate([white[:num], rest[: NUM - num]]) for num in (usual, usual // 2, 0)],
    ):
        distances = [frechet.distance(real, images) for images in changed]
        assert np.all(np.diff(distances) > 0), distances
        assert distances[-1] > 2 * distances[0]


def test_more_pictures_are_nearer_and_the_same_ones_at_zero(pictures):
    grey = pictures.mean(axis=-1, keepdims=True)
    few, many = (frechet.distance(grey[:num], grey[num : 2 * num]) for num in (100, 400))
    assert 0 < many < few
    assert frechet.distance(grey[:50], grey[:50]) < 1e-9


def test_wrong_pictures_are_refused(pictures):
    some = pictures[:3]
    for a, b, message in (
        (some, some[:, :32], r"of one size; got \(64, 64, 3\) and \(32, 64, 3\)"),
        (some, some[..., :1], "of one size"),
        (some[:, :60], some[:, :60], "multiples of 8; got 60x64"),
        (some[0], some, r"\[N, H, W, C\].*got shape \(64, 64, 3\)"),
        (some[:1], some, r"N at least 2; got shape \(1, 240\)"),
        (some[:0], some, r"N at least 1; got shape \(0, 64, 64, 3\)"),
        (some, np.zeros(some.shape, np.uint8), "got uint8"),
        (some * 127.5, some, r"float in \[-1, 1\]; got float32 in \[-12"),
        (some * np.nan, some, r"in \[nan, nan\]"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            frechet.distance(a, b)
        assert "\n" not in str(error.value)
