"""Small random models of DeepFloyd IF as tests/goldens/make_if_goldens.py describes them."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from imagen_jax.interop import deepfloyd
from imagen_jax.stage_dir import if_pipeline, unet_weights
from tests.conftest import GOLDENS
from tests.goldens import make_if_goldens

TINY_IF = GOLDENS / "tiny_if"


@pytest.fixture(scope="session")
def goldens():
    with np.load(GOLDENS / "if_unets.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def load_model(goldens, tmp_path_factory):
    """load(name) -> Stage of a model of the goldens, from files in diffusers' layout."""
    loaded = {}

    def load(name):
        if name not in loaded:
            directory = TINY_IF
            if name != "stage_1":
                directory = tmp_path_factory.mktemp(name)
                (directory / "config.json").write_text(str(goldens[f"{name}/config"]))
                shapes = if_pipeline.param_shapes(deepfloyd.read_config(directory))
                named = {name: row.shape for row in unet_weights.table(shapes) for name in row.names}
                seed = list(make_if_goldens.MODELS).index(name)
                save_file(make_if_goldens.weights(named, seed), directory / "diffusion_pytorch_model.fp16.safetensors")
            loaded[name] = deepfloyd.load_stage(directory)
        return loaded[name]

    return load


def write_pipeline(directory, goldens, model, *, has_text=True, **changes):
    """Write a pipeline with a model of the goldens that reads the captions of tiny_t5_v1_1; return its directory.

    `changes` are of its config.json. Without `has_text` the language model is left out.
    """
    unet = directory / "unet"
    unet.mkdir(parents=True)
    config = json.loads(str(goldens[f"{model}/config"])) | {"encoder_hid_dim": 32} | changes
    (unet / "config.json").write_text(json.dumps(config))
    shapes = if_pipeline.param_shapes(if_pipeline.read_config(unet))
    named = {name: row.shape for row in unet_weights.table(shapes) for name in row.names}
    save_file(make_if_goldens.weights(named), unet / "diffusion_pytorch_model.safetensors")
    (directory / "model_index.json").write_text(json.dumps({"_class_name": "IFPipeline"}))
    if has_text:
        for file in (GOLDENS / "tiny_t5_v1_1").iterdir():
            folder = directory / ("tokenizer" if file.name.startswith("tokenizer") else "text_encoder")
            folder.mkdir(exist_ok=True)
            (folder / file.name).write_bytes(file.read_bytes())
    return directory


@pytest.fixture(scope="session")
def cascade_of_two(goldens, tmp_path_factory):
    """A directory with the pipelines I, 8 pixels, and II, 32 pixels and without a language model.

    Their networks have one level, since what runs them compiles them again and again; the networks themselves are
    compared in tests/interop.
    """
    directory = tmp_path_factory.mktemp("deepfloyd")
    one_level = {"down_block_types": ["ResnetDownsampleBlock2D"], "up_block_types": ["ResnetUpsampleBlock2D"]}
    one_level |= {"block_out_channels": [16], "layers_per_block": [1]}
    write_pipeline(directory / "I", goldens, "stage_1", sample_size=8, **one_level)
    write_pipeline(directory / "II", goldens, "stage_2", has_text=False, sample_size=32, **one_level)
    return directory


@pytest.fixture
def pipeline(tmp_path):
    """A copy of tiny_if that a test may change."""
    directory = tmp_path / "pipeline"
    for file in TINY_IF.rglob("*.*"):
        if file.is_file():
            target = directory / file.relative_to(TINY_IF)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return directory


@pytest.fixture
def change_json():
    """change_json(file, key=value, ...) rewrites a JSON file; a value that is ... removes the key."""

    def change(file, **changes):
        data = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))

    return change
