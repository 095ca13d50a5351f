import numpy as np
import pytest

from imagen_jax.stage_dir import if_pipeline, unet_weights
from imagen_jax.stage_dir.unet_weights import Row
from tests.deepfloyd_models import TINY_IF

WEIGHTS = "diffusion_pytorch_model"


@pytest.mark.parametrize(
    ("path", "shape", "num", "parameter"),
    [
        (("conv_in", "kernel"), (5, 3, 2, 4), 1, (2, 4, 3, 5)),
        (("block", "shortcut", "kernel"), (5, 3, 1, 1), 1, (3, 5)),
        (("attention", "key_value", "kernel"), (5, 3), 2, (3, 10)),
        (("attention", "key_value", "bias"), (5,), 2, (10,)),
        (("text_pool", "position"), (1, 5), 1, (1, 5)),
    ],
)
def test_tensors_and_parameters_are_inverse(path, shape, num, parameter):
    row = Row(path, tuple("ab"[:num]), shape)
    tensors = [np.random.default_rng(i).normal(size=shape) for i in range(num)]
    made = row.to_parameter(tensors)
    assert made.shape == parameter
    np.testing.assert_array_equal(row.to_tensors(made), tensors)


def test_a_parameter_of_two_tensors_has_the_first_in_its_first_columns():
    rows = unet_weights.table(if_pipeline.param_shapes(if_pipeline.read_config(TINY_IF)))
    (row,) = (row for row in rows if row.path == ("up_1_block_0", "attention", "text_key_value", "kernel"))
    assert row.names == tuple(f"up_blocks.0.attentions.0.add_{name}_proj.weight" for name in "kv")
    assert row.to_parameter([np.zeros((16, 32)), np.ones((16, 32))])[0].tolist() == [0] * 16 + [1] * 16
    (row,) = (row for row in rows if row.path == ("up_1_upsample", "norm_2", "film", "bias"))
    assert row.names == ("up_blocks.0.upsamplers.0.time_emb_proj.bias",) and row.shape == (32,)


@pytest.mark.parametrize(
    ("names", "variant", "found"),
    [
        ([f"{WEIGHTS}.safetensors", f"{WEIGHTS}.fp16.safetensors"], None, f"{WEIGHTS}.safetensors"),
        ([f"{WEIGHTS}.safetensors", f"{WEIGHTS}.fp16.safetensors"], "fp16", f"{WEIGHTS}.fp16.safetensors"),
        ([f"{WEIGHTS}.fp16.safetensors"], None, f"{WEIGHTS}.fp16.safetensors"),
    ],
)
def test_files_of_a_variant_are_found(names, variant, found, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert unet_weights.find_files(tmp_path, variant) == [tmp_path / found]


@pytest.mark.parametrize(
    ("names", "variant", "message"),
    [
        ([], None, f"must hold {WEIGHTS}.safetensors; got none"),
        ([f"{WEIGHTS}.bin"], None, "weights must be safetensors; got only .bin in .*run `imagen-jax convert --model "),
        (
            [f"{WEIGHTS}.fp16.bin"], None,
            f"only .bin in .*, or rename {WEIGHTS}.fp16.bin to {WEIGHTS}.bin and run `imagen-jax convert --model ",
        ),
        (
            [f"{WEIGHTS}.a-00001-of-00002.bin", f"{WEIGHTS}.a-00002-of-00002.bin"], None,
            "only .bin in .*: download the .safetensors files.$",
        ),
        (
            [f"{WEIGHTS}.a.safetensors", f"{WEIGHTS}.b.safetensors"], None,
            "variant must be one of a, b, which are in .*; got None: choose one in deepfloyd.load_stage, or move",
        ),
        ([f"{WEIGHTS}.safetensors"], "fp16", "variant must be one of none, which are in .*; got 'fp16'"),
        ([f"{WEIGHTS}-00001-of-00002.safetensors"], None, "must hold diffusion_pytorch_model.safetensors.index.json"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(names, variant, message, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=message):
        unet_weights.find_files(tmp_path, variant)


def test_a_missing_shard_is_named(pipeline):
    (pipeline / "unet" / f"{WEIGHTS}.fp16-00001-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="must name shards that exist; got .*00001-of-00002.safetensors"):
        if_pipeline.load(pipeline)
