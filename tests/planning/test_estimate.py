"""Plans of a stage: what is exact, and the compiler's word where libtpu is installed."""

import dataclasses

import jax
import pytest

from imagen_jax import config as C
from imagen_jax import sharding
from imagen_jax.config import distilled
from imagen_jax.planning import program, targets
from imagen_jax.planning.estimate import estimate, planned
from imagen_jax.training import state as states


def run_on(config, **run):
    return dataclasses.replace(config, run=dataclasses.replace(config.run, **run))


def test_a_stage_is_planned_with_what_is_asked_for(tiny_configs):
    config = planned(tiny_configs[0], "train", batch=32, fsdp=2, compute_dtype="bfloat16")
    assert (config.optim.batch_size, config.run.fsdp, config.compute_dtype) == (32, 2, "bfloat16")
    assert planned(tiny_configs[0], "sample") == tiny_configs[0]
    with pytest.raises(ValueError, match="optim.batch_size must be at least 1"):
        planned(tiny_configs[0], "train", batch=0)


@pytest.mark.slow
def test_state_bytes_are_those_of_the_real_state(tiny_configs, monkeypatch):
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 256)
    config = run_on(tiny_configs[0], fsdp=4)
    plan = estimate(config, "train", 8)
    state = states.init_state(config, states.abstract_state(config, sharding.make_mesh(4)))
    on_first = lambda tree: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
    assert plan.params_bytes == on_first(state.params) and plan.ema_bytes == on_first(state.ema_params)
    assert plan.optimizer_bytes == on_first(state.opt_state)
    assert plan.parameters == states.count(state.params)
    whole = [leaf for leaf in jax.tree.leaves(state) if leaf.sharding.is_fully_replicated]
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert plan.replicated == pytest.approx(sum(leaf.nbytes for leaf in whole) / total)


@pytest.mark.slow
def test_remat_costs_work_and_saves_memory(tiny_configs):
    network = C.EfficientUNetConfig(8, (8, 16), (2, 2), (False, True), (False, False), embedding=32, num_heads=2)
    many = dataclasses.replace(tiny_configs[1].optim, batch_size=64)
    big = dataclasses.replace(tiny_configs[1], network=network, optim=many)
    plain, full = (estimate(run_on(big, remat=remat), "train", 1) for remat in ("none", "full"))
    assert full.temporary_bytes < 0.8 * plain.temporary_bytes
    assert plain.flops < full.flops < 4 / 3 * plain.flops
    # The image's own convolution and the text's projections need no gradient of their inputs.
    assert plain.flops / 64 == pytest.approx(plain.model_flops_per_image, rel=0.1)


@pytest.mark.slow
def test_patches_save_work_and_memory(tiny_configs):
    """A network of 4x4 patches of 32x32 pixels does what one of 8x8 pixels does, but in its first and last layers."""
    at = lambda size, patch_size: estimate(
        dataclasses.replace(
            tiny_configs[0],
            image_size=size,
            network=dataclasses.replace(tiny_configs[0].network, patch_size=patch_size),
        ),
        "train",
        1,
    )
    whole, patched, small = at(32, 1), at(32, 4), at(8, 1)
    outer = 3 * 2 * 9 * 8 * 8 * 2 * 8 * (48 - 3) * 8  # 45 channels more in and out of 8, and no gradient of the input
    assert 0 < patched.model_flops_per_image - small.model_flops_per_image <= outer
    assert patched.temporary_bytes < 0.3 * whole.temporary_bytes


@pytest.mark.slow
def test_sampling_does_two_passes_a_guided_step(tiny_configs):
    sampled = lambda **options: estimate(
        dataclasses.replace(tiny_configs[0], sampling=C.override(tiny_configs[0].sampling, options)),
        "sample",
        8,
    )
    assert sampled(steps=8).flops == pytest.approx(2 * sampled(steps=4).flops, rel=0.1)
    assert sampled(guidance_scale=1.0).flops == pytest.approx(sampled().flops / 2, rel=0.1)
    assert sampled().optimizer_bytes == 0


@pytest.mark.slow
def test_sampling_with_bfloat16_holds_half_and_no_copy(tiny_configs):
    config = dataclasses.replace(tiny_configs[0], compute_dtype="bfloat16")
    whole, half = (estimate(config, "sample", 1, dtype) for dtype in ("float32", "bfloat16"))
    assert whole.params_bytes == 2 * half.params_bytes == 4 * half.parameters
    # But in what is computed in float32 whatever the parameters are.
    assert 0.8 * half.params_bytes < whole.temporary_bytes - half.temporary_bytes <= half.params_bytes


@pytest.mark.slow
def test_local_devices_run_what_was_planned(tiny_configs):
    network = dataclasses.replace(tiny_configs[1].network, self_attention=(False,))
    config = run_on(dataclasses.replace(tiny_configs[1], network=network), fsdp=2)
    compiled = program.compile_for(config, "train", targets.target(None))
    assert compiled.peak_bytes > 0 and sum(size for _, size in compiled.collectives.values()) > 0
    sampled = program.compile_for(config, "sample", targets.target(None))
    assert sampled.argument_bytes < compiled.argument_bytes


def test_against_the_compiler_for_tpus():
    pytest.importorskip("libtpu")
    config = C.StageConfig(
        image_size=32,
        network=C.UNetConfig((128, 256), (1, 1), (False, True), embedding=256),
        text=C.TextConfig(width=256, length=32),
        optim=C.OptimConfig(batch_size=64),
        compute_dtype="bfloat16",
    )
    target = targets.target("v5e:2x2")
    compiled = program.compile_for(config, "train", target)
    assert estimate(config, "train", 4).peak_bytes == pytest.approx(compiled.peak_bytes, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "networks", "optimizers", "passes"),
    [
        # Three more forward passes, two of the guided teacher, beside a forward and a backward pass.
        ("consistency", 2, 1, 6),
        # Twice a forward and a backward pass, two forward passes of the guided teacher, and the first of two steps.
        ("moment_matching", 3, 2, 9),
    ],
)
def test_a_teacher_and_an_auxiliary_network_are_held_and_computed_as_well(
    tiny_configs, objective, networks, optimizers, passes
):
    config = tiny_configs[1]
    made = C.DistilledConfig(steps=2, guidance_scale=3.0)
    optim = dataclasses.replace(config.optim, objective=objective)
    taught = distilled.with_sampling(dataclasses.replace(config, distilled=made, optim=optim))
    plain, plan = (estimate(each, "train", 1) for each in (config, taught))
    assert plan.params_bytes == networks * plain.params_bytes
    assert plan.optimizer_bytes == optimizers * plain.optimizer_bytes
    assert plan.flops / plain.flops == pytest.approx(passes / 3, rel=0.1)
