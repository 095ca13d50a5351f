"""DeepFloyd IF beside diffusers: outputs, files, and what is refused."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax import sharding, stage
from imagen_jax.diffusion import guidance, process, samplers, schedules
from imagen_jax.diffusion.denoisers import then
from imagen_jax.interop import deepfloyd
from imagen_jax.models.if_unet import RELEASED
from imagen_jax.stage_dir import if_pipeline, unet_config, unet_weights
from imagen_jax.structs import Cond, TextCond
from tests.conftest import GOLDENS
from tests.deepfloyd_models import TINY_IF
from tests.goldens.make_if_goldens import digest

RELEASED_GOLDENS = json.loads((GOLDENS / "if_released.json").read_text())


def last(image):
    """[B, C, H, W] -> [B, H, W, C]."""
    return jnp.asarray(np.moveaxis(image, 1, -1))


def arguments(goldens, name):
    """The golden's inputs as `predict` takes them; padding in the mask, which has no effect."""
    get = lambda key: goldens[f"{name}/{key}"]
    sample, embeddings = last(get("sample")), jnp.asarray(get("encoder_hidden_states"))
    text = TextCond(embeddings, jnp.arange(embeddings.shape[1])[None, :] < jnp.array([[7], [3]]))
    given = {"sample": sample[..., :3], "timestep": jnp.asarray(get("timestep")), "text": text}
    if f"{name}/class_labels" in goldens:
        given |= {"low_res": sample[..., 3:], "noise_level": jnp.asarray(get("class_labels"))}
    return given


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stage_1", "stage_2", pytest.param("mixed", marks=pytest.mark.slow)])
def test_outputs_agree_with_diffusers(name, goldens, load_model):
    eps, variance = deepfloyd.predict(load_model(name), **arguments(goldens, name))
    assert eps.shape == variance.shape == (*last(goldens[f"{name}/sample"]).shape[:3], 3)
    np.testing.assert_allclose(jnp.concatenate([eps, variance], axis=-1), last(goldens[f"{name}/out"]), atol=2e-5)


@pytest.mark.slow
def test_a_stage_denoises_with_the_same_network(goldens, load_model):
    """`Stage.denoise` codes the steps by the log-SNR, of z_t and of the low-res image."""
    loaded, given = load_model("stage_2"), arguments(goldens, "stage_2")
    schedule = stage.schedule(loaded.config)
    logsnr_t, aug_logsnr = (
        schedule.logsnr((given[name].astype(jnp.float32) + 1) / 1000) for name in ("timestep", "noise_level")
    )
    cond = loaded.prepare(Cond(given["text"], given["low_res"], aug_logsnr))
    estimate = jax.jit(stage.Stage.denoise)(loaded, given["sample"], logsnr_t, cond)
    eps, variance = last(goldens["stage_2/out"])[..., :3], last(goldens["stage_2/out"])[..., 3:]
    # eps and not x_hat, which at step 999 is 20,000 times as large.
    eps_hat = process.eps_from(given["sample"], estimate.x, logsnr_t, "x")
    np.testing.assert_allclose(eps_hat, eps, atol=2e-4)
    np.testing.assert_allclose(estimate.log_variance, (variance + 1) / 2, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name.endswith("-M") else pytest.mark.slow) for name in RELEASED]
)
def test_released_networks_have_the_tensors_of_diffusers(name):
    golden = RELEASED_GOLDENS[name]
    described = unet_config.parse(golden["config"])
    assert described.network == RELEASED[name]
    shapes = if_pipeline.param_shapes(if_pipeline._stage_config(described, TINY_IF / "none"))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == golden["parameters"]
    named = {name: row.shape for row in unet_weights.table(shapes) for name in row.names}
    assert len(named) == golden["tensors"] and digest(named) == golden["sha256"]


def test_a_configuration_has_what_the_pipeline_says(pipeline, change_json, load_model):
    config = deepfloyd.read_config(pipeline)
    assert config == deepfloyd.read_config(pipeline / "unet") == load_model("stage_1").config
    assert (config.name, config.image_size, config.low_res_size, config.text.width) == ("base", 16, None, 16)
    assert (config.sampling.percentile, config.sampling.cap, config.sampling.guidance_scale) == (0.95, 1.5, 7)
    change_json(pipeline / "scheduler/scheduler_config.json", sample_max_value=2.0, lambda_min_clipped=-5.1)
    assert deepfloyd.read_config(pipeline).sampling.cap == 2
    enlarging = load_model("stage_2").config
    assert (enlarging.name, enlarging.image_size, enlarging.low_res_size) == ("sr16", 16, 4)
    noise = schedules.alpha_sigma(stage.schedule(enlarging).logsnr(0.251))[1]
    assert enlarging.sampling.aug_level == pytest.approx(float(noise)) and enlarging.sampling.cap == 1


@dataclasses.dataclass(frozen=True)
class Given(samplers.DDPM):
    """Ancestral sampling with given noise in place of that of the keys."""

    noise: Any = None

    def check(self):
        pass

    def step(self, s, carry):
        return super().step(s._replace(noise=self.noise[s.index]), carry)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model"),
    [("custom", "stage_1"), ("stage_2", "stage_2"), pytest.param("leading", "stage_1", marks=pytest.mark.slow)],
)
def test_guided_thresholded_trajectories_agree_with_diffusers(name, model, goldens, load_model):
    """Eight steps with learned variance; with the steps of the stage's own spacing where the golden has them."""
    loaded, get = load_model(model), lambda key: goldens[f"{name}/{key}"]
    sampling, schedule = loaded.config.sampling, stage.schedule(loaded.config)
    steps = get("timesteps")
    spaced = schedules.grid(schedule, len(steps), sampling.method("spacing"))
    grid = jnp.append(schedule.logsnr((steps.astype(np.float32) + 1) / 1000), schedules.LOGSNR_MAX)
    if name != "custom":
        np.testing.assert_array_equal(spaced, grid)
    embeddings = jnp.asarray(get("text"))
    mask = jnp.ones(embeddings.shape[:2], bool)
    low_res = {}
    if loaded.config.is_super_resolution:
        low_res = {"low_res_noised": last(get("low_res")), "aug_logsnr": jnp.full(2, schedule.logsnr(0.251))}
    cond, null = (Cond(TextCond(embeddings[rows], mask[rows]), **low_res) for rows in (slice(2), slice(2, 4)))

    @jax.jit
    def run(loaded, z_1, noise, cond, null):
        denoise = guidance.classifier_free(loaded.denoise, cond, null, 5.0)
        sampler, keys = Given(noise=noise), stage.image_keys(0, len(z_1))
        return samplers.sample(then(denoise, sampling.method("threshold")), z_1, grid, sampler=sampler, keys=keys)

    noise = jnp.stack([last(each) for each in [*get("noise"), 0 * get("z_1")]])
    z_0 = run(loaded, last(get("z_1")), noise, loaded.prepare(cond), loaded.prepare(null))
    np.testing.assert_allclose(z_0, last(get("z_0")), atol=1e-3)


# --- files --------------------------------------------------------------------------------------


def test_export_writes_what_was_read_to_the_bit(load_model, tmp_path):
    loaded = load_model("stage_1")
    deepfloyd.export(loaded, tmp_path / "out", dtype="float16", variant="fp16")
    written = load_file(tmp_path / "out/unet/diffusion_pytorch_model.fp16.safetensors")
    original = {}
    for file in (TINY_IF / "unet").glob("*.safetensors"):
        original |= load_file(file)
    assert set(written) == set(original)
    for name, values in original.items():
        assert written[name].dtype == values.dtype == np.float16
        np.testing.assert_array_equal(written[name], values)
    again = deepfloyd.load_stage(tmp_path / "out")
    assert again.config == loaded.config
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)
    with pytest.raises(ValueError, match="directory must be a new directory"):
        deepfloyd.export(loaded, tmp_path / "out")


def test_parameters_are_born_on_the_mesh_and_in_bfloat16(load_model):
    mesh = sharding.make_mesh(fsdp=4)
    loaded = deepfloyd.load_stage(TINY_IF, dtype="bfloat16", mesh=mesh)
    leaf, exact = (each.params["conv_in"]["kernel"] for each in (loaded, load_model("stage_1")))
    assert leaf.dtype == jnp.bfloat16 and len(leaf.sharding.device_set) == 8
    np.testing.assert_array_equal(leaf, exact.astype(jnp.bfloat16))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stage_1", "stage_2"])
def test_sharded_parameters_give_the_outputs_of_one_device(name, goldens, load_model, monkeypatch):
    """Eight devices share each parameter, and each has two rows of the batch."""
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 256)
    mesh, loaded = sharding.make_mesh(fsdp=8), load_model(name)
    if name == "stage_1":  # born on the mesh
        sharded = deepfloyd.load_stage(TINY_IF, mesh=mesh)
    else:
        sharded = sharding.shard_params(loaded, mesh)
    shares = [leaf.addressable_shards[0].data.size / leaf.size for leaf in jax.tree.leaves(sharded.params)]
    assert min(shares) == 1 / 8 and np.mean(np.array(shares) < 1) > 0.3
    given = jax.tree.map(lambda rows: jnp.concatenate([rows] * 8), arguments(goldens, name))
    outputs = deepfloyd.predict(sharded, **sharding.pad_batch(given, 16, mesh))
    assert not any(out.sharding.is_fully_replicated for out in outputs)
    for out, wanted in zip(outputs, deepfloyd.predict(loaded, **arguments(goldens, name)), strict=True):
        np.testing.assert_allclose(np.asarray(out).reshape(8, *wanted.shape), np.stack([wanted] * 8), atol=1e-4)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, "be a pipeline of DeepFloyd IF; got 'Stable"),
        ("model_index.json", {"_class_name": "StableDiffusionUpscalePipeline"}, "latent upscaler, which is not a"),
        ("unet/config.json", {"in_channels": 7, "num_class_embeds": 1000}, "a stage III latent upscaler"),
        ("unet/config.json", {"_class_name": ...}, "load stages of ours by imagen_jax.load_stage"),
        ("unet/config.json", {"act_fn": "silu"}, "config.json: act_fn must be \"gelu\"; got 'silu': give the unet of"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear"}, "beta_schedule must be 'squaredcos_cap_v2'"),
        ("scheduler/scheduler_config.json", {"sample_max_value": 0.5}, r"max_value must be in \[1, 1000000\]; got 0.5"),
    ],
)  # fmt: skip
def test_other_pipelines_are_refused(file, changes, message, pipeline, change_json):
    change_json(pipeline / file, **changes)
    with pytest.raises(ValueError, match=message) as refused:
        deepfloyd.load_stage(pipeline)
    assert "\n" not in str(refused.value)


def test_directories_without_a_unet_are_refused(tmp_path):
    with pytest.raises(ValueError, match="directory must be that of a pipeline .* which is no directory"):
        deepfloyd.load_stage(tmp_path / "none")
    with pytest.raises(ValueError, match="directory must hold unet/config.json or config.json"):
        deepfloyd.load_stage(tmp_path)
    language_model = "with _class_name; got a language model of type 't5': give the pipeline or its unet/"
    with pytest.raises(ValueError, match=language_model):
        deepfloyd.load_stage(GOLDENS / "tiny_t5_v1_1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("conv_in.bias"), r"and no others; got 1 missing \(conv_in.bias\): get both of the same"),
        (lambda t: t.update(extra=t["conv_in.bias"]), r"got 1 left over \(extra\)"),
        (lambda t: t.update({"conv_in.bias": np.zeros(3, np.float16)}), r"conv_in.bias must have shape \(8,\) as con"),
        (lambda t: t.update({"conv_in.bias": np.zeros(8, np.int8)}), "bias must be F16, BF16, F32, F64; got I8"),
        (lambda t: t.update({"conv_in.bias": np.full(8, np.nan, "f4")}), "conv_in.bias must be finite; got NaN"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit_are_named(change, message, pipeline):
    tensors = {}
    for file in (pipeline / "unet").glob("*.safetensors"):
        tensors |= load_file(file)
        file.unlink()
    change(tensors)
    save_file(tensors, pipeline / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=message):
        deepfloyd.load_stage(pipeline)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timestep": jnp.array([0, 1000])}, r"timestep must be in \[0, 999\]"),
        ({"low_res": None}, "low_res must be given to stage II; got None"),
        ({"noise_level": None}, "noise_level must be given to stage II"),
        ({"text": None}, "text must be a TextCond"),
        ({"sample": jnp.zeros((2, 9, 8, 3)), "low_res": jnp.zeros((2, 9, 8, 3))}, "z_t must be .* multiples of 2"),
        ({"sample": jnp.zeros((2, 3, 8, 8))}, r"sample must be \[B, H, W, 3\]; got \(2, 3, 8, 8\): put"),
        ({"low_res": jnp.zeros((2, 4, 4, 3))}, r"low_res must have the shape of sample"),
        ({"timestep": jnp.array([0, 1, 2])}, r"timestep must be \[2\], as sample; got \(3,\)"),
        (
            {"text": TextCond(jnp.zeros((2, 7, 5)), jnp.ones((2, 7), bool))},
            r"text must have embeddings \[2, L, \d+\], as sample and the network; got \(2, 7, 5\): enc",
        ),
    ],
)
def test_inputs_that_do_not_fit_are_refused(changes, message, goldens, load_model):
    given = arguments(goldens, "stage_2") | changes
    with pytest.raises(ValueError, match=message):
        deepfloyd.predict(load_model("stage_2"), **given)


def test_configurations_without_parameters_are_refused(goldens, tmp_path):
    empty = stage.Stage(None, deepfloyd.read_config(TINY_IF))
    rule = "^stage must have parameters; got a configuration alone: load it by deepfloyd.load_stage"
    with pytest.raises(ValueError, match=rule):
        deepfloyd.export(empty, tmp_path / "out")
    with pytest.raises(ValueError, match=rule):
        deepfloyd.predict(empty, **arguments(goldens, "stage_1"))


def test_stages_of_ours_are_refused(tiny_stages, goldens, tmp_path, load_model):
    with pytest.raises(ValueError, match="stage must be of DeepFloyd IF"):
        deepfloyd.predict(tiny_stages[0], **arguments(goldens, "stage_1"))
    with pytest.raises(ValueError, match="stage must have the network if_unet"):
        deepfloyd.export(tiny_stages[0], tmp_path / "out")
    with pytest.raises(ValueError, match="low_res must be None for stage I"):
        deepfloyd.predict(load_model("stage_1"), **arguments(goldens, "stage_2"))
