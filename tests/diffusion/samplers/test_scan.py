"""The scan over a grid: its loop, its calls of the model, resampling, and the first step that is not finite."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import denoisers, samplers, schedules
from imagen_jax.diffusion.samplers import scan
from tests.diffusion.gaussian import ALL, COSINE, MEAN, VAR, denoise, many


def test_trajectory_and_callback_only_when_asked_for():
    keys, z_1 = many(3)
    grid = schedules.grid(COSINE, 6)
    seen = []
    x, info = samplers.sample(
        denoise, z_1, grid, return_info=True, trajectory=True,
        callback=lambda step, x_hat: seen.append((int(step), x_hat.copy())),
    )  # fmt: skip
    jax.effects_barrier()
    assert info.x_hats.shape == (6, 3, 1, 1, 1) and [step for step, _ in seen] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_array_equal(info.x_hats, np.stack([x_hat for _, x_hat in seen]))
    _, info = samplers.sample(denoise, z_1, grid, return_info=True)
    assert info.x_hats is None
    text = str(jax.make_jaxpr(lambda z: samplers.sample(denoise, z, grid))(z_1))
    assert "callback" not in text and text.count("scan[") == 1


@pytest.mark.parametrize("name", ["ddim", "heun", "unipc order 2"])
def test_one_traced_loop_whatever_the_number_of_steps(name):
    size = lambda steps: len(
        str(
            jax.make_jaxpr(
                lambda z: samplers.sample(denoise, z, jnp.linspace(-5, 5, steps + 1), sampler=ALL[name])
            )(jnp.zeros((1, 1, 1, 1)))
        )
    )
    assert size(200) < 1.2 * size(20)


@pytest.mark.slow
def test_calls_of_the_model():
    """Heun takes two a step, and one in the last; all others one. A final estimate is one more."""

    def calls(sampler):
        count = []

        def counted(z_t, logsnr_t):
            jax.debug.callback(lambda: count.append(1))
            return denoise(z_t, logsnr_t)

        keys, z_1 = many(1)
        grid = schedules.grid(COSINE, 5, "rho", sigma_min=0.1, sigma_max=10.0)
        jax.block_until_ready(samplers.sample(counted, z_1, grid, sampler=sampler, keys=keys))
        jax.effects_barrier()
        return len(count)

    assert {name: calls(sampler) for name, sampler in ALL.items()} == {
        name: 9 if "heun" in name else 5 for name in ALL
    }
    final = {name: dataclasses.replace(sampler, final_logsnr=0.0) for name, sampler in ALL.items()}
    assert {name: calls(sampler) for name, sampler in final.items()} == {
        name: 10 if "heun" in name else 6 for name in ALL
    }


# --- the final estimate ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "resample"),
    [
        *((name, 1) for name in ALL),
        # Repeats are the loop's: one sampler of each order, and one that adds noise.
        *((name, 2) for name in ("ddim eta 0.6", "dpmpp_2m", "unipc order 2", "heun")),
    ],
)
def test_the_final_estimate_is_of_the_finished_image_without_noise(name, resample):
    """At the end of any sampler, whatever the level: the denoiser is given alpha x and what it returns is the result.

    What led there is not changed by it.
    """
    keys, z_1 = many(3)
    grid = schedules.grid(COSINE, 6)
    run = lambda sampler: samplers.sample(
        denoise, z_1, grid, sampler=sampler, keys=keys, resample=resample, return_info=True, trajectory=True
    )
    x, info = run(ALL[name])
    for level in (-3.0, 0.5, 19.0):
        y, again = run(dataclasses.replace(ALL[name], final_logsnr=level))
        alpha = np.float64(1 / (1 + np.exp(-level))) ** 0.5
        sigma = (1 - alpha**2) ** 0.5
        exact = MEAN + alpha * VAR * alpha * (np.float64(x) - MEAN) / (alpha**2 * VAR + sigma**2)
        np.testing.assert_allclose(y, exact, rtol=2e-5, atol=2e-5)
        assert len(again.x_hats) == len(info.x_hats) + 1
        np.testing.assert_allclose(again.x_hats[:-1], info.x_hats, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(again.x_hats[-1], y, rtol=1e-6)


def test_a_broken_final_estimate_is_blamed_on_the_step_after_the_last():
    breaks = lambda z_t, logsnr_t: jnp.where((logsnr_t == 0.25)[:, None, None, None], jnp.nan, denoise(z_t, logsnr_t))
    _, z_1 = many(2)
    sampler, seen = samplers.DPMpp2M(final_logsnr=0.25), []
    _, info = samplers.sample(
        breaks, z_1, schedules.grid(COSINE, 6), sampler=sampler, return_info=True,
        callback=lambda step, x_hat: seen.append(int(step)),
    )  # fmt: skip
    jax.effects_barrier()
    assert info.broken_at.tolist() == [7, 7] and seen == [1, 2, 3, 4, 5, 6, 7]


def test_gradients_pass_through_the_final_estimate():
    _, z_1 = many(2)
    grid = schedules.grid(COSINE, 6)
    for name in ("ddim", "dpmpp_2m", "heun", "unipc order 2"):
        for level in (-20.0, 0.0, 19.9):
            sampler = dataclasses.replace(ALL[name], final_logsnr=level)
            slope = jax.grad(lambda z, s=sampler: jnp.sum(samplers.sample(denoise, z, grid, sampler=s)))(z_1)
            assert np.isfinite(slope).all() and (slope > 0).all()


def test_a_sampler_makes_no_step_of_the_final_estimate():
    """One of a user that evaluates the model in every step does so T times, at the levels of the grid."""
    levels = []

    @dataclasses.dataclass(frozen=True)
    class Twice(samplers.DDIM):
        def step(self, s, carry):
            jax.debug.callback(lambda *found: levels.append(tuple(map(float, found))), s.logsnr_t, s.logsnr_s)
            return super().step(s._replace(x_hat=s.denoise(s.z_t, s.logsnr_t)), carry)

    grid = schedules.grid(COSINE, 3)
    _, z_1 = many(2)
    x = samplers.sample(denoise, z_1, grid, sampler=Twice(final_logsnr=0.0))
    jax.block_until_ready(x)
    jax.effects_barrier()
    assert sorted(levels) == [(float(t), float(s)) for t, s in zip(grid, grid[1:], strict=False)]
    once = samplers.sample(denoise, z_1, grid, sampler=samplers.DDIM(final_logsnr=0.0))
    np.testing.assert_allclose(x, once, rtol=1e-5)


def test_state_of_the_denoiser_reaches_the_final_estimate():
    counting = denoisers.Stateful(lambda z: jnp.zeros(()), lambda z, logsnr, n: (jnp.full_like(z, n), n + 1))
    _, z_1 = many(1)
    for sampler, last in ((samplers.DDIM(), 3), (samplers.DDIM(final_logsnr=0.0), 4)):
        x = samplers.sample(counting, z_1, schedules.grid(COSINE, 4), sampler=sampler)
        np.testing.assert_allclose(x, last, atol=1e-3)


def test_wrong_final_levels():
    for value, rule in ((np.nan, "be a finite number"), (2000.0, "be in"), ("high", "be a finite number")):
        with pytest.raises(ValueError, match=f"^final_logsnr must {rule}"):
            samplers.DDIM(final_logsnr=value)


# --- RePaint's resampling -------------------------------------------------------------------------


def test_resampling_visits_the_levels_in_the_published_order():
    number, place, before, is_first, back_to = scan._itinerary(steps=5, resample=3, jump=2)
    assert place.tolist() == [0, 1] * 3 + [2, 3] * 3 + [4] * 3
    assert before.tolist() == [0, *place.tolist()[:-1]]
    assert back_to.tolist() == [-1, 0, -1, 0, -1, -1, -1, 2, -1, 2, -1, -1, 4, 4, -1]
    assert np.flatnonzero(is_first).tolist() == [0, 2, 4, 8, 10, 13, 14]
    assert number.tolist() == list(range(15))


# --- broken estimates and wrong inputs ------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_broken_step_of_each_image_is_known(value):
    grid = schedules.grid(COSINE, 6)

    def breaks(z_t, logsnr_t):
        late = (logsnr_t >= grid[3]) & (jnp.arange(3) == 1)
        return jnp.where(late[:, None, None, None], value, denoise(z_t, logsnr_t))

    _, z_1 = many(3)
    _, info = samplers.sample(breaks, z_1, grid, sampler="dpmpp_2m", return_info=True)
    assert info.broken_at.tolist() == [0, 4, 0]


def test_an_estimate_inside_a_step_is_blamed_on_that_step():
    grid = schedules.grid(COSINE, 6, "rho")
    breaks = lambda z_t, logsnr_t: jnp.where(
        (logsnr_t == grid[3])[:, None, None, None] & (z_t > 1e9), 0.0, denoise(z_t, logsnr_t)
    )
    calls = lambda z_t, logsnr_t: jnp.where(
        (logsnr_t > grid[2])[:, None, None, None], jnp.nan, breaks(z_t, logsnr_t)
    )
    _, z_1 = many(2)
    _, info = samplers.sample(calls, z_1, grid, sampler="heun", return_info=True)
    assert info.broken_at.tolist() == [3, 3]  # the corrector of step 3 looks at level 4


def test_stochastic_samplers_and_resampling_need_keys():
    z_1, grid = jnp.zeros((1, 1, 1, 1)), schedules.grid(COSINE, 2)
    with pytest.raises(ValueError, match="a stochastic sampler: one for each image"):
        samplers.sample(denoise, z_1, grid, sampler="ddpm")
    with pytest.raises(ValueError, match="resample > 1: one for each image"):
        samplers.sample(denoise, z_1, grid, resample=2)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ([5.0, 0.0, -5.0], "must decrease in noise .* got 5 then 0 at step 1"),
        ([-5.0, 0.0, 0.0], "got 0 then 0 at step 2"),
        ([-5.0, np.nan, 0.0], "got -5 then nan at step 1"),
        ([1.0], r"steps T >= 1; got shape \(1,\)"),
    ],
)
def test_wrong_grids(grid, message):
    with pytest.raises(ValueError, match=message):
        samplers.sample(denoise, jnp.zeros((1, 1, 1, 1)), jnp.array(grid))


def test_a_denoiser_with_memory_keeps_it_from_step_to_step():
    grid = schedules.grid(COSINE, 5)
    counting = denoisers.Stateful(
        lambda z_1: jnp.zeros(()), lambda z_t, logsnr_t, count: (0 * z_t + count, count + 1)
    )
    _, info = samplers.sample(counting, jnp.zeros((1, 1, 1, 1)), grid, return_info=True, trajectory=True)
    assert info.x_hats.ravel().tolist() == [0, 1, 2, 3, 4]
