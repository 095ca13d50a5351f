import dataclasses
import json

import jax
import numpy as np
import pytest

from imagen_jax import (
    Stage,
    TextEncoder,
    generate,
    image_keys,
    load_cascade,
    sample_cascade,
    sample_stage,
    stage,
)
from imagen_jax import config as C
from imagen_jax.interop import deepfloyd
from imagen_jax.stage_dir import if_pipeline, parameters
from tests.deepfloyd_models import write_pipeline

pytestmark = pytest.mark.usefixtures("compiled_once")

FEW = {"steps": 2, "sampler": "ddim", "spacing": "t"}


@pytest.fixture(scope="module")
def stages(cascade_of_two):
    return load_cascade(cascade_of_two)


@pytest.mark.slow
def test_directories_of_pipelines_are_a_cascade(cascade_of_two, stages):
    """Named together or by the directory that they are in; the language model is that of the one which has it."""
    first, second = cascade_of_two / "I", cascade_of_two / "II"
    again, loaded = load_cascade((second, str(first)), return_steps=True)
    assert [s.config for s in again] == [s.config for s in stages]
    assert [s.config.name for s in stages] == ["base", "sr32"]
    assert {s.config.text for s in stages} == {C.TextConfig(str(first), 32, 77, output="padded", clean_captions=True)}
    assert loaded == {"base": if_pipeline.weights_hash(first), "sr32": if_pipeline.weights_hash(second)}
    for each in (again, deepfloyd.load_cascade([first, second])):
        jax.tree.map(np.testing.assert_array_equal, each[1].params, stages[1].params)
    (alone,) = load_cascade(first)
    assert alone.config == stages[0].config
    with pytest.raises(ValueError, match="^weights in .*II must have the sha256 0{64}; got "):
        load_cascade(cascade_of_two, steps={"sr32": "0" * 64})
    with pytest.raises(ValueError, match="checkpoint of stage base must be of step 3; got the pipeline "):
        load_cascade(first, steps={"base": 3})


@pytest.mark.slow
def test_guidance_is_away_from_the_empty_prompt(stages):
    encoder = TextEncoder.from_config(stages[0].config.text)
    (made,) = generate.generate(stages, encoder, ["A RED circle"], seeds=[0], batch_size=1, **FEW)
    text, null = encoder.encode(["a red circle"]), encoder.encode([""])
    keys = image_keys(0, 1)
    expected = sample_cascade(stages, text, keys, null=null, **FEW)
    np.testing.assert_allclose(made[-1], expected[0], atol=1e-3)
    as_negative = sample_cascade(stages, text, keys, negative=null, **FEW)
    np.testing.assert_array_equal(as_negative, expected)
    zeros = jax.tree.map(lambda leaf: 0 * leaf, null.embeddings)
    other = sample_cascade(stages, text, keys, null=null.replace(embeddings=zeros), **FEW)
    assert np.abs(other - expected).max() > 1e-3
    for call in (sample_cascade, lambda stages, *args, **options: sample_stage(stages[0], *args)):
        with pytest.raises(ValueError, match=r"^negative must be given to stage base, .*: give encoder.encode"):
            call(stages, text, keys, **FEW)


@pytest.mark.slow
def test_captions_dropped_in_training_are_the_null_caption(stages):
    loaded, rng = stages[0], np.random.default_rng(0)
    encoder = TextEncoder.from_config(loaded.config.text)
    text, null = encoder.encode(["a red circle", "a blue star"]), encoder.encode([""])
    batch = {"x": rng.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)}
    captions = lambda text: {"text": text.embeddings, "text_mask": text.mask}
    draws = stage.draw(loaded.config, jax.random.key(0), 2)
    kept, dropped = (draws.replace(dropped=np.full(2, is_on)) for is_on in (False, True))
    loss = jax.jit(lambda batch, draws: stage.loss(loaded.params, loaded.config, batch, draws))
    both = jax.tree.map(lambda leaf: np.concatenate([leaf, leaf]), null)
    np.testing.assert_array_equal(
        loss(batch | captions(text) | {"null": null}, dropped), loss(batch | captions(both), kept)
    )
    assert loss(batch | captions(text), dropped) != loss(batch | captions(both), kept)


def test_a_pipeline_can_be_fine_tuned(cascade_of_two, stages):
    place = str(cascade_of_two / "I")
    found = parameters.find(*parameters.split(place)[:1], "base")
    assert found.config == if_pipeline.read_config(place) and found.checkpoints == [if_pipeline.weights_hash(place)]
    config = dataclasses.replace(stages[0].config, init_from=f"{place}@{found.checkpoints[0]}")
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=device), stages[0].params)
    jax.tree.map(np.testing.assert_array_equal, parameters.initial(config, shapes), stages[0].params)
    other = dataclasses.replace(config, init_from=f"{place}@{'0' * 64}")
    with pytest.raises(ValueError, match="must have the sha256 0{64}; got .*: put the files of then back"):
        parameters.initial(other, shapes)


@pytest.mark.slow
def test_a_stage_of_ours_may_follow(cascade_of_two, stages, tmp_path, caplog):
    """It reads the captions of the pipelines' language model if they have the width that it was trained with."""
    from imagen_jax import save_stage

    network = C.EfficientUNetConfig(8, (8,), (1,), (False,), (False,), embedding=32)
    config = C.StageConfig(
        name="sr64", image_size=64, low_res_size=32, network=network, text=C.TextConfig("mine", 32, 20)
    )
    init = jax.jit(stage.init, static_argnums=0)
    save_stage(Stage(init(config, jax.random.key(0)), config), tmp_path / "third")
    third = load_cascade((cascade_of_two, tmp_path / "third"))[-1]
    assert third.config == dataclasses.replace(config, text=stages[0].config.text)
    wide = dataclasses.replace(config, text=C.TextConfig("mine", 33, 20))
    save_stage(Stage(init(wide, jax.random.key(0)), wide), tmp_path / "wide")
    with pytest.raises(ValueError, match="^text.width of stage sr64 must be that of stage sr32, 32; got 33"):
        load_cascade([cascade_of_two, tmp_path / "wide"])


def test_what_is_no_cascade_is_refused(tmp_path, goldens, cascade_of_two):
    write_pipeline(tmp_path / "models/one", goldens, "stage_1", has_text=False)
    with pytest.raises(ValueError, match="must hold text_encoder; got .*: download it and tokenizer too"):
        TextEncoder.from_pretrained(tmp_path / "models/one")
    upscaler = tmp_path / "models/upscaler"
    upscaler.mkdir()
    (upscaler / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionUpscalePipeline"}))
    with pytest.raises(ValueError, match="a stage III latent upscaler, which is not a pixel stage: as third stage"):
        load_cascade(tmp_path / "models")
    with pytest.raises(ValueError, match="^best must be left out with several directories"):
        load_cascade((cascade_of_two / "I", cascade_of_two / "II"), best=True)
    with pytest.raises(ValueError, match="^workdir must be at least one directory"):
        load_cascade(())
