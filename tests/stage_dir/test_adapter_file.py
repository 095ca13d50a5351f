"""Adapter files: what is written is applied as it was trained, and whatever else is there is one clear line."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from imagen_jax import config as C
from imagen_jax import load_cascade, save_cascade
from imagen_jax.interop import deepfloyd
from imagen_jax.models import lora
from imagen_jax.stage_dir import adapter_file
from tests.conftest import random_array
from tests.deepfloyd_models import TINY_IF

LORA = C.LoraConfig(rank=3, scale=0.5, targets="all")


def adapters_of(params, seed, config=LORA):
    rng = np.random.default_rng(seed)
    new = jax.eval_shape(lambda: lora.init(jax.random.key(0), params, config.rank, config.targets))
    return jax.tree.map(lambda leaf: random_array(rng, leaf.shape), new)


@pytest.fixture(scope="module")
def written(tiny_stages, tmp_path_factory):
    """A directory with a cascade in run/, and adapters of its two stages in base/ and sr16/."""
    directory = tmp_path_factory.mktemp("adapters")
    save_cascade(tiny_stages, directory / "run")
    for i, each in enumerate(tiny_stages):
        config = dataclasses.replace(each.config, lora=LORA, init_from="runs/first")
        adapter_file.write(directory / each.config.name, config, adapters_of(each.params, i), each.params)
    return directory


def content(directory):
    return safetensors.numpy.load_file(directory / adapter_file.WEIGHTS)


def assert_close(one, other, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), one, other)


@pytest.mark.slow
def test_the_layout_is_that_of_peft(written, tiny_stages):
    tensors = content(written / "base")
    described = json.loads((written / "base" / adapter_file.CONFIG).read_text())
    assert {key: described[key] for key in ("peft_type", "r", "lora_alpha", "base_model_name_or_path")} == {
        "peft_type": "LORA", "r": 3, "lora_alpha": 1.5, "base_model_name_or_path": "runs/first"
    }  # fmt: skip
    block, name = "base_model.model.down_0_block_0", "lora_{}.weight"
    assert {f"{block}.attention.query".removeprefix("base_model.model.")} <= set(described["target_modules"])
    wanted = {".attention.key_value": ((3, 8), (16, 3)), ".conv_1": ((3, 8, 3, 3), (8, 3, 1, 1))}
    for module, shapes in wanted.items():
        assert tuple(tensors[f"{block}{module}.{name.format(kind)}"].shape for kind in "AB") == shapes
    # As PEFT merges a convolution: the kernel of 1x1 applied to that of 3x3, [C, I, KH, KW].
    a, b = (tensors[f"{block}.conv_1.{name.format(kind)}"] for kind in "AB")
    product = np.einsum("crxy,rikl->cikl", b, a).transpose(2, 3, 1, 0)
    own = adapters_of(tiny_stages[0].params, 0)["down_0_block_0"]["conv_1"]
    np.testing.assert_allclose(product, (own["a"] @ own["b"]).reshape(3, 3, 8, 8), atol=1e-6)


@pytest.mark.slow
def test_adapters_apply_with_their_weights_to_the_stages_that_they_are_for(written, tiny_stages):
    weights = {f"{written}/sr16/{adapter_file.WEIGHTS}": 1.0, written / "base": -0.25}
    stages = load_cascade(written / "run", adapters=weights)
    for i, (each, weight) in enumerate(zip(tiny_stages, (-0.25, 1.0), strict=True)):
        wanted = lora.merge(each.params, adapters_of(each.params, i), 0.5 * weight)
        assert_close(stages[i].params, wanted, 1e-5)
        assert stages[i].config == each.config


def test_two_adapters_of_one_stage_add_up(written, tiny_stages, tmp_path):
    base, (rank, scale) = tiny_stages[0], (1, 2.0)
    other = C.LoraConfig(rank=rank, scale=scale)
    more = adapters_of(base.params, 5, other)
    adapter_file.write(tmp_path / "more", dataclasses.replace(base.config, lora=other), more, base.params)
    (found, _) = load_cascade(written / "run", adapters={written / "base": 1.0, tmp_path / "more": 0.5})
    wanted = lora.merge(lora.merge(base.params, adapters_of(base.params, 0), 0.5), more, 1.0)
    assert_close(found.params, wanted, 1e-5)


def test_files_of_other_programs_apply_to_the_stage_with_their_modules(written, tiny_stages, tmp_path):
    """In half precision, and without our metadata."""
    tensors = {key: value.astype(np.float16) for key, value in content(written / "sr16").items()}
    (tmp_path / "a").mkdir()
    safetensors.numpy.save_file(tensors, tmp_path / "a" / adapter_file.WEIGHTS)
    (tmp_path / "a" / adapter_file.CONFIG).write_bytes((written / "sr16" / adapter_file.CONFIG).read_bytes())
    configs = [each.config for each in tiny_stages]
    (fitted,) = adapter_file.fit(configs, {tmp_path / "a": 1.0})
    assert fitted.stage == "sr16" and fitted.adapter.base == {}
    assert_close(fitted.adapters, adapters_of(tiny_stages[1].params, 1), 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.int8])
def test_a_base_that_an_export_has_rounded_is_the_same_and_another_one_is_not(written, tiny_stages, dtype):
    (fitted,) = adapter_file.fit([each.config for each in tiny_stages], {written / "base": 1.0})

    def rounded(leaf):
        leaf = np.asarray(leaf)
        if dtype == np.int8 and leaf.ndim > 1:
            scale = np.abs(leaf).max(axis=tuple(range(leaf.ndim - 1))) / 127
            return np.round(leaf / scale) * scale
        return leaf.astype(ml_dtypes.bfloat16).astype(np.float32)

    stages = [each.replace(params=jax.tree.map(rounded, each.params)) for each in tiny_stages]
    adapter_file.apply(stages, [fitted])
    rng = np.random.default_rng(9)
    others = jax.tree.map(lambda leaf: leaf + 0.2 * random_array(rng, leaf.shape), tiny_stages[0].params)
    with pytest.raises(ValueError, match="^--adapter .* must be of the parameters of stage base that are loaded; got"):
        adapter_file.apply([tiny_stages[0].replace(params=others), stages[1]], [fitted])


def without(key):
    return lambda tensors, described: tensors.pop(key)


QUERY = "base_model.model.down_0_block_0.attention.query"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"{QUERY}.lora_A.weight"), "must hold lora_A.weight and lora_B.weight .*; got one of them for"),
        (lambda t, d: t.update({"lm_head.weight": np.zeros(2)}), "must hold .*; got 'lm_head.weight': take a LoRA"),
        (lambda t, d: t.update({f"{QUERY}.lora_A.weight": np.zeros((3, 8))}), "must be F32, F16, BF16; got 'F64'"),
        (lambda t, d: t[f"{QUERY}.lora_A.weight"].fill(np.nan), "query.lora_A.weight must be finite; got NaN"),
        (lambda t, d: d.update(r=4), "must have the rank r of adapter_config.json, 4; got 3"),
        (lambda t, d: d.update(r="4"), "adapter_config.json: r must be a whole number"),
        (lambda t, d: d.pop("lora_alpha"), "lora_alpha must be a finite number; got None"),
        (lambda t, d: d.update(peft_type="LOHA"), "peft_type must be LORA; got 'LOHA': take a plain LoRA adapter"),
        (lambda t, d: d.update(init_lora_weights="pissa"), "init_lora_weights must leave the base .*; got 'pissa'"),
        (lambda t, d: d.update(use_dora=True), "use_dora must be False; got True"),
        (lambda t, d: d.update(rank_pattern={"query": 2}), "rank_pattern must be False; got"),
    ],
)
def test_what_is_no_adapter_is_one_line(written, tiny_stages, tmp_path, change, message):
    tensors, described = content(written / "base"), json.loads((written / "base" / adapter_file.CONFIG).read_text())
    tensors = {key: np.array(value) for key, value in tensors.items()}
    change(tensors, described)
    safetensors.numpy.save_file(tensors, tmp_path / adapter_file.WEIGHTS)
    (tmp_path / adapter_file.CONFIG).write_text(json.dumps(described))
    with pytest.raises(ValueError, match=f"^--adapter .*{message}") as error:
        adapter_file.read(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700


def test_missing_and_damaged_files_are_one_line(written, tmp_path):
    with pytest.raises(ValueError, match="^--adapter must be an adapter, .*; got .* does not exist"):
        adapter_file.read(tmp_path)
    whole = (written / "base" / adapter_file.WEIGHTS).read_bytes()
    for damaged in (b"", whole[:100], whole[:-1], b"\xff" * 8 + whole[8:]):
        (tmp_path / adapter_file.WEIGHTS).write_bytes(damaged)
        (tmp_path / adapter_file.CONFIG).write_bytes((written / "base" / adapter_file.CONFIG).read_bytes())
        with pytest.raises(ValueError, match="^--adapter .* must be a safetensors file; got an error"):
            adapter_file.read(tmp_path)
    (tmp_path / adapter_file.WEIGHTS).write_bytes(whole)
    (tmp_path / adapter_file.CONFIG).write_text("{")
    with pytest.raises(ValueError, match="adapter_config.json must hold JSON"):
        adapter_file.read(tmp_path)


def test_adapters_of_other_networks_and_weights_beyond_reason_are_refused(written, tiny_stages):
    base, last = (each.config for each in tiny_stages)
    with pytest.raises(ValueError, match="^--adapter .* must be for one of the stages that run, sr16; got one of"):
        adapter_file.fit([last], {written / "base": 1.0})
    wider = dataclasses.replace(base, network=C.UNetConfig((16,), (1,), (True,), embedding=32, head_dim=8))
    with pytest.raises(ValueError, match=r"must have the shapes .*: take an adapter .* this one is for runs/first"):
        adapter_file.fit([wider], {written / "base": 1.0})
    plain = dataclasses.replace(base, network=C.UNetConfig((8,), (1,), (False,), embedding=32, head_dim=8))
    with pytest.raises(ValueError, match="must be a module of stage base; got another one"):
        adapter_file.fit([plain], {written / "base": 1.0})
    with pytest.raises(ValueError, match=r"weight must be in \[-1000, 1000\]"):
        adapter_file.fit([base], {written / "base": 1e6})


# --- DeepFloyd IF -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deepfloyd_tensors():
    tensors = {}
    for file in (TINY_IF / "unet").glob("*.safetensors"):
        tensors |= safetensors.numpy.load_file(file)
    return {name: value.astype(np.float32) for name, value in tensors.items()}


def test_adapters_of_deepfloyd_if_have_the_names_of_diffusers(load_model, deepfloyd_tensors, tmp_path):
    """A module that is one here and two there is written as two, and is read again as it was."""
    loaded = load_model("stage_1")
    config, adapters = dataclasses.replace(loaded.config, lora=LORA), adapters_of(loaded.params, 0)
    adapter_file.write(tmp_path / "a", config, adapters, loaded.params)
    tensors = content(tmp_path / "a")
    kernels = {name for name, value in deepfloyd_tensors.items() if name.endswith("weight") and value.ndim > 1}
    assert {name.replace("base_model.model.", "").replace("lora_A.", "") for name in tensors if "_A" in name} == kernels
    described = json.loads((tmp_path / "a" / adapter_file.CONFIG).read_text())
    assert set(described["target_modules"]) == {name.removesuffix(".weight") for name in kernels}
    fitted = adapter_file.fit([config], {tmp_path / "a": 1.0})
    (found,) = adapter_file.apply([loaded], fitted)
    assert_close(found.params, lora.merge(loaded.params, adapters, 0.5), 1e-5)
    others = loaded.replace(params=jax.tree.map(lambda leaf: 1.5 * leaf, loaded.params))
    with pytest.raises(ValueError, match="must be of the parameters of stage base that are loaded; got one of"):
        adapter_file.apply([others], fitted)


def test_adapters_of_peft_for_diffusers_apply(pipeline, deepfloyd_tensors, load_model, tmp_path):
    """Merged as PEFT does, in diffusers' layout, the weights are those that are loaded with the adapter."""
    block, rng, tensors, merged = "down_blocks.1.", np.random.default_rng(0), {}, dict(deepfloyd_tensors)
    layers = ("to_q", "to_v", "add_k_proj", "add_v_proj", "to_out.0")  # to_k has no adapter
    modules = [*(f"{block}attentions.0.{each}" for each in layers), "encoder_hid_proj", "add_embedding.pool.k_proj"]
    modules += [f"{block}resnets.0.conv1", f"{block}resnets.0.conv_shortcut"]
    for module in modules:
        weight = deepfloyd_tensors[f"{module}.weight"]
        rest = (1,) * (weight.ndim - 2)
        a, b = random_array(rng, (2, *weight.shape[1:])), random_array(rng, (len(weight), 2, *rest))
        tensors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
        product = np.tensordot(np.asarray(b).reshape(len(weight), 2), a, axes=1)
        merged[f"{module}.weight"] = (weight + 4 / 2 * product).astype(np.float32)
    tensors = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    (tmp_path / "a").mkdir()
    safetensors.numpy.save_file(tensors, tmp_path / "a" / adapter_file.WEIGHTS)
    (tmp_path / "a" / adapter_file.CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    for file in (pipeline / "unet").glob("*.safetensors*"):
        file.unlink()
    safetensors.numpy.save_file(merged, pipeline / "unet" / "diffusion_pytorch_model.safetensors")
    loaded = load_model("stage_1")
    second = dataclasses.replace(load_model("stage_2").config, name="sr32")
    (fitted,) = adapter_file.fit([loaded.config, second], {tmp_path / "a": 1.0})
    assert fitted.stage == "base"
    (found,) = adapter_file.apply([loaded], [fitted])
    assert_close(found.params, deepfloyd.load_stage(pipeline).params, 1e-5)
    with pytest.raises(ValueError, match="must have the shapes .*: take an adapter for this cascade; this one is"):
        adapter_file.fit([second], {tmp_path / "a": 1.0})
