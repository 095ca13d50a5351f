import numpy as np

from imagen_jax import resize
from imagen_jax.evaluation import sweep


def test_combinations_are_all_of_them_in_order():
    assert sweep.combinations({"steps": (4, 8), "aug_level": (0.0, 0.1, 0.2)}) == [
        {"steps": s, "aug_level": a} for s in (4, 8) for a in (0.0, 0.1, 0.2)
    ]


def test_consistency_is_the_psnr_of_the_averaged_picture():
    rng = np.random.default_rng(0)
    small = rng.uniform(-0.8, 0.8, (3, 8, 8, 3)).astype(np.float32)
    big = np.repeat(np.repeat(small, 2, axis=1), 2, axis=2)
    assert (sweep.consistency(small, big) > 100).all()
    noise = np.repeat(np.repeat(rng.choice([-0.02, 0.02], small.shape), 2, axis=1), 2, axis=2)
    np.testing.assert_allclose(sweep.consistency(small, big + noise), 10 * np.log10(4 / 0.02**2), atol=0.01)
    checks = np.where(np.indices((16, 16)).sum(axis=0) % 2, 0.1, -0.1)[None, :, :, None]
    assert (
        sweep.consistency(small, big + checks) > 100
    ).all()  # detail that averages out is not held against it
    np.testing.assert_allclose(resize.area(big, 8), small, atol=1e-6)


def test_the_front_holds_what_no_setting_beats_in_both():
    cost = np.array([4.0, 1.0, 2.0, 2.0, 3.0, 5.0])
    value = np.array([0.9, 0.5, 0.7, 0.8, 0.8, np.nan])
    front = sweep.pareto(cost, value)
    assert front.tolist() == [1, 3, 0]
    for i in range(5):
        beaten = [
            (cost[j] <= cost[i] and value[j] > value[i]) or (cost[j] < cost[i] and value[j] >= value[i])
            for j in range(5)
        ]
        assert (i in front) == (not any(beaten))


def test_table():
    table = sweep.format_table([{"steps": 4, "alignment": 0.123456}, {"steps": 8, "alignment": 0.5}])
    assert table.splitlines() == ["| steps | alignment |", "| --- | --- |", "| 4 | 0.1235 |", "| 8 | 0.5 |"]
