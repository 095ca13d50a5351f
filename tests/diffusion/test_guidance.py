import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import guidance, samplers, schedules

Z = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
LOGSNR = jnp.array([-1.0, 0.0, 1.0])
COND, NULL = {"a": jnp.array([1.5, 2.0, 3.0])}, {"a": jnp.zeros(3)}
OTHER = {"a": jnp.array([-1.0, 0.5, 0.0])}


def denoise(z_t, logsnr_t, cond):
    return z_t * (logsnr_t + cond["a"])[:, None, None, None] + 0.1 * cond["a"][:, None, None, None]


def counted():
    """(denoiser, list of the batch sizes that it was really evaluated at, under jit too)."""
    calls = []

    def run(z_t, logsnr_t, cond):
        jax.debug.callback(lambda z: calls.append(len(z)), z_t)
        return denoise(z_t, logsnr_t, cond)

    return run, calls


def evaluate(guided, logsnr=LOGSNR):
    out = jax.block_until_ready(jax.jit(guided)(Z, logsnr))
    jax.effects_barrier()
    return out


def test_scale_one_is_off():
    run, calls = counted()
    guided = guidance.classifier_free(run, COND, NULL, 1.0)
    np.testing.assert_array_equal(guided(Z, LOGSNR), denoise(Z, LOGSNR, COND))
    jax.effects_barrier()
    assert calls == [3]


def test_is_the_affine_combination_in_one_call():
    run, calls = counted()
    got = evaluate(guidance.classifier_free(run, COND, NULL, 7.5))
    np.testing.assert_allclose(
        got, 7.5 * denoise(Z, LOGSNR, COND) - 6.5 * denoise(Z, LOGSNR, NULL), rtol=1e-4, atol=1e-5
    )
    assert calls == [6]


def test_scale_zero_is_unconditional():
    got = guidance.classifier_free(denoise, COND, NULL, 0.0)(Z, LOGSNR)
    np.testing.assert_allclose(got, denoise(Z, LOGSNR, NULL), atol=1e-6)


def test_outside_the_interval_only_the_conditional_call_is_paid_for():
    run, calls = counted()
    guided = guidance.classifier_free(run, COND, NULL, guidance.interval(4.0, -2.0, 2.0))
    full = guidance.classifier_free(denoise, COND, NULL, 4.0)
    for level, paid in ((-3.0, 3), (-2.0, 6), (0.0, 6), (2.0, 6), (2.5, 3)):
        calls.clear()
        logsnr = jnp.full((3,), level)
        got = evaluate(guided, logsnr)
        assert calls == [paid]
        expected = full(Z, logsnr) if paid == 6 else denoise(Z, logsnr, COND)
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_interval_saves_calls_inside_the_sampler():
    run, calls = counted()
    grid = schedules.grid(schedules.make("cosine"), 10)
    guided = guidance.classifier_free(run, COND, NULL, guidance.interval(4.0, -2.0, 2.0))
    jax.block_until_ready(jax.jit(lambda z: samplers.sample(guided, z, grid))(Z))
    jax.effects_barrier()
    inside = int(np.sum((grid[:-1] >= -2) & (grid[:-1] <= 2)))
    assert sorted(calls) == [3] * (10 - inside) + [6] * inside and 0 < inside < 10


def test_oscillation():
    """Imagen Video: high for the first steps, then low and high by turns; low 1 costs one call."""
    grid = schedules.grid(schedules.make("cosine"), 8)
    scale = guidance.oscillating(15.0, 1.0, 3, grid)
    assert [float(scale(level[None])[0]) for level in grid[:-1]] == [15, 15, 15, 1, 15, 1, 15, 1]
    run, calls = counted()
    guided = guidance.classifier_free(run, COND, NULL, scale)
    jax.block_until_ready(samplers.sample(guided, Z, grid))
    jax.effects_barrier()
    assert calls == [6, 6, 6, 3, 6, 3, 6, 3]


def test_prompts_with_weights_are_one_call():
    run, calls = counted()
    got = evaluate(guidance.classifier_free(run, (COND, OTHER), NULL, 3.0, weights=(0.7, 0.3)))
    null = denoise(Z, LOGSNR, NULL)
    pulls = 0.7 * (denoise(Z, LOGSNR, COND) - null) + 0.3 * (denoise(Z, LOGSNR, OTHER) - null)
    np.testing.assert_allclose(got, null + 3 * pulls, rtol=1e-4, atol=1e-5)
    assert calls == [9]
    with pytest.raises(ValueError, match="sum to 1"):
        guidance.classifier_free(denoise, (COND, OTHER), NULL, 3.0, weights=(0.7, 0.7))


def test_a_negative_prompt_takes_the_place_of_the_null():
    got = guidance.classifier_free(denoise, COND, OTHER, 3.0)(Z, LOGSNR)
    expected = 3 * denoise(Z, LOGSNR, COND) - 2 * denoise(Z, LOGSNR, OTHER)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


# --- rules ----------------------------------------------------------------------------------------


def test_rescaling_brings_the_contrast_back():
    full = guidance.rescaled(guidance.linear(), 1.0)
    got = guidance.classifier_free(denoise, COND, NULL, 9.0, rule=full)(Z, LOGSNR)
    np.testing.assert_allclose(
        got.std(axis=(1, 2, 3)), denoise(Z, LOGSNR, COND).std(axis=(1, 2, 3)), rtol=1e-4
    )
    plain = guidance.classifier_free(denoise, COND, NULL, 9.0)(Z, LOGSNR)
    half = guidance.rescaled(guidance.linear(), 0.5)
    np.testing.assert_allclose(
        guidance.classifier_free(denoise, COND, NULL, 9.0, rule=half)(Z, LOGSNR),
        (got + plain) / 2, rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def reference_apg(x_cond, x_null, w, eta, norm):
    """Sadat et al. 2024, algorithm 1, image by image in float64; `norm` is a root-mean-square."""
    out = []
    for c, n in zip(np.asarray(x_cond, np.float64), np.asarray(x_null, np.float64), strict=True):
        d = c - n
        if norm is not None:
            d = d * min(1, norm * np.sqrt(d.size) / np.linalg.norm(d))
        unit = c / np.linalg.norm(c)
        along = np.sum(d * unit) * unit
        out.append(c + (w - 1) * (d - along + eta * along))
    return np.stack(out)


@pytest.mark.parametrize(("eta", "norm"), [(0.0, None), (0.3, None), (0.0, 0.2), (1.0, 1e6)])
def test_projected_guidance_is_the_published_algorithm(eta, norm):
    x_cond, x_null = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 2))
    got, _ = guidance.projected(eta, norm).combine(x_cond, x_null, 6.0, ())
    np.testing.assert_allclose(got, reference_apg(x_cond, x_null, 6.0, eta, norm), rtol=1e-4, atol=1e-4)
    if eta == 1:  # nothing is taken away: classifier-free guidance
        np.testing.assert_allclose(got, x_null + 6 * (x_cond - x_null), rtol=1e-4, atol=1e-4)


def test_projected_guidance_remembers_with_momentum():
    guided = guidance.classifier_free(denoise, COND, NULL, 3.0, rule=guidance.projected(1.0, momentum=-0.5))
    assert isinstance(guided, guidance.Stateful)
    x_1, state = guided.call(Z, LOGSNR, guided.init(Z))
    x_2, _ = guided.call(Z, LOGSNR, state)
    cond, null = denoise(Z, LOGSNR, COND), denoise(Z, LOGSNR, NULL)
    np.testing.assert_allclose(x_1, cond + 2 * (cond - null), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x_2, cond + 2 * (cond - null) * 0.5, rtol=1e-4, atol=1e-5)
    grid = schedules.grid(schedules.make("cosine"), 4)
    for sampler in ("dpmpp_2m", "heun"):
        assert np.isfinite(samplers.sample(guided, Z, grid, sampler=sampler)).all()


def test_cfg_plus_plus_renoises_along_the_unconditional_estimate():
    """Chung et al. 2024, algorithm 2: z_s = alpha_s x_w + sigma_s eps_null."""
    run, calls = counted()
    guided = guidance.classifier_free(run, COND, NULL, 0.6, rule=guidance.plus_plus())
    grid = jnp.array([0.0, 1.0])
    z_s = samplers.sample(guided, Z, grid)
    jax.effects_barrier()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (schedules.alpha_sigma(level) for level in grid)
    cond, null = (denoise(Z, jnp.zeros(3), c) for c in (COND, NULL))
    eps = (Z - alpha_t * null) / sigma_t
    np.testing.assert_allclose(z_s, alpha_s * (null + 0.6 * (cond - null)) + sigma_s * eps, atol=1e-5)
    assert calls == [6]


def test_cfg_plus_plus_at_scale_one_still_needs_both():
    run, calls = counted()
    evaluate(guidance.classifier_free(run, COND, NULL, 1.0, rule=guidance.plus_plus()))
    assert calls == [6]


def test_autoguidance_steers_away_from_the_weaker_model():
    weak = lambda z_t, logsnr_t, cond: 0.5 * denoise(z_t, logsnr_t, cond)
    got = guidance.autoguidance(denoise, weak, COND, COND, 2.0)(Z, LOGSNR)
    np.testing.assert_allclose(got, 1.5 * denoise(Z, LOGSNR, COND), rtol=1e-4, atol=1e-5)
    run, calls = counted()
    evaluate(guidance.autoguidance(denoise, run, COND, COND, 1.0))
    assert not calls


def test_thresholds_before_the_combination():
    clip = lambda x_hat: jnp.clip(x_hat, -0.1, 0.1)
    got = guidance.classifier_free(denoise, COND, NULL, 3.0, threshold=clip)(Z, LOGSNR)
    cond, null = (clip(denoise(Z, LOGSNR, c)) for c in (COND, NULL))
    np.testing.assert_allclose(got, null + 3 * (cond - null), atol=1e-6)
    off = guidance.classifier_free(denoise, COND, NULL, 1.0, threshold=clip)(Z, LOGSNR)
    np.testing.assert_allclose(off, cond, atol=1e-6)


# --- statistics -----------------------------------------------------------------------------------


def test_composed_gaussians_have_the_moments_of_their_product():
    """Prompts N(m_i, 1) and a null N(0, 1): the weighted scores are those of N(w sum_i weight_i m_i, 1)."""
    num = 20_000

    def gaussian(z_t, logsnr_t, mean):
        alpha, sigma = (a[:, None, None, None] for a in schedules.alpha_sigma(logsnr_t))
        mean = mean[:, None, None, None]
        return mean + alpha * (z_t - alpha * mean) / (alpha**2 + sigma**2)

    constant = lambda value: jnp.full((num,), value)
    guided = guidance.classifier_free(
        gaussian, (constant(0.2), constant(0.6)), constant(0.0), 2.0, weights=(0.25, 0.75)
    )
    z_1 = samplers.normal(jax.random.split(jax.random.key(0), num), (1, 1, 1))
    x = samplers.sample(guided, z_1, schedules.grid(schedules.make("cosine"), 64), sampler="dpmpp_2m")
    assert float(x.mean()) == pytest.approx(2 * (0.25 * 0.2 + 0.75 * 0.6), abs=0.03)
    assert float(x.std()) == pytest.approx(1, abs=0.03)
