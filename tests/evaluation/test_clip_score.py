import json
import shutil

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from imagen_jax import resize
from imagen_jax.evaluation import clip_score
from imagen_jax.evaluation.clip_score import ClipScorer
from imagen_jax.text.known import KNOWN
from tests.conftest import GOLDENS

CAPTIONS = ["a red cat", "the dog on the square", "blue"]
TEXT = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "max_position_embeddings": 20, "eos_token_id": 39,
}  # fmt: skip
VISION = {
    "hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 3,
    "image_size": 8, "patch_size": 4,
}  # fmt: skip
CONFIG = {"model_type": "clip", "projection_dim": 6, "text_config": TEXT, "vision_config": VISION}


def published_shapes(config):
    """Name and shape of every tensor of a published checkpoint."""
    shapes = {"logit_scale": ()}

    def add(name, *shape, bias=True):
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    for half, projection in (("text", "text_projection"), ("vision", "visual_projection")):
        sizes = config[f"{half}_config"]
        width, inner = sizes["hidden_size"], sizes["intermediate_size"]
        for i in range(sizes["num_hidden_layers"]):
            layer = f"{half}_model.encoder.layers.{i}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                add(f"{layer}.self_attn.{name}", width, width)
            add(f"{layer}.mlp.fc1", inner, width)
            add(f"{layer}.mlp.fc2", width, inner)
            add(f"{layer}.layer_norm1", width)
            add(f"{layer}.layer_norm2", width)
        add(projection, config["projection_dim"], width, bias=False)
        shapes[f"{half}_model.embeddings.position_ids"] = (1, 5)  # older files have them
    text, vision = config["text_config"], config["vision_config"]
    width, patch = vision["hidden_size"], vision["patch_size"]
    table = "text_model.embeddings.{}_embedding"
    add(table.format("token"), text["vocab_size"], text["hidden_size"], bias=False)
    add(table.format("position"), text["max_position_embeddings"], text["hidden_size"], bias=False)
    add("text_model.final_layer_norm", text["hidden_size"])
    shapes["vision_model.embeddings.class_embedding"] = (width,)
    add("vision_model.embeddings.patch_embedding", width, 3, patch, patch, bias=False)
    num = (vision["image_size"] // patch) ** 2 + 1
    add("vision_model.embeddings.position_embedding", num, width, bias=False)
    add("vision_model.pre_layrnorm", width)
    add("vision_model.post_layernorm", width)
    return shapes


def write(directory, config, tensors, **preprocessor):
    """A model directory as it is published."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(tensors, directory / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDENS / "tiny_clip" / name, directory)
    (directory / "preprocessor_config.json").unlink(missing_ok=True)
    if preprocessor:
        (directory / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return directory


@pytest.fixture(scope="module")
def tensors():
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in published_shapes(CONFIG).items()
    }


@pytest.fixture(scope="module")
def scorer(tmp_path_factory, tensors):
    return ClipScorer.from_pretrained(write(tmp_path_factory.mktemp("clip"), CONFIG, tensors))


@pytest.fixture
def pictures():
    return np.random.default_rng(1).uniform(-1, 1, (3, 8, 8, 3)).astype(np.float32)


@pytest.mark.filterwarnings("ignore:caption 3.* is cut to the limit of 20")
@pytest.mark.parametrize("name", ["quick_gelu", "gelu"])
def test_cosines_match_torch(tmp_path, name):
    golden = load_file(GOLDENS / "clip_score.safetensors")
    with safe_open(GOLDENS / "clip_score.safetensors", framework="numpy") as opened:
        stated = {key: value for key, value in opened.metadata().items() if key[0] not in "tv"}
    stated = {key: json.loads(value) for key, value in stated.items()}
    prefix = f"{name}/weights/"
    weights = {key.removeprefix(prefix): value for key, value in golden.items() if key.startswith(prefix)}
    write(tmp_path, stated[f"{name}/config"], weights, image_mean=stated["mean"], image_std=stated["std"])
    pictures, captions = golden["pictures"], stated["captions"]
    expected = golden[f"{name}/cosine"]
    assert expected.shape == (3, 4) and expected.std() > 0.1
    found = ClipScorer.from_pretrained(tmp_path).score(np.repeat(pictures, 4, axis=0), captions * 3)
    np.testing.assert_allclose(found.reshape(3, 4), expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_scores_are_cosines_whatever_the_batch(scorer, pictures, monkeypatch):
    scores = scorer.score(pictures, CAPTIONS)
    assert type(scores) is np.ndarray and scores.shape == (3,) and scores.dtype == np.float32
    assert np.all(abs(scores) <= 1) and len(set(scores.tolist())) == 3
    monkeypatch.setattr(clip_score, "_BATCH_SIZE", 2)
    np.testing.assert_allclose(scorer.score(pictures, CAPTIONS), scores, rtol=0, atol=1e-6)
    reversed_scores = scorer.score(pictures[::-1], CAPTIONS[::-1])
    np.testing.assert_allclose(reversed_scores, scores[::-1], rtol=0, atol=1e-6)


def test_pictures_of_any_size_are_fitted_and_cropped(scorer, pictures):
    expected = scorer.score(pictures, CAPTIONS)
    for kind in (
        np.repeat(pictures, 3, axis=1).repeat(3, axis=2),
        np.pad(pictures, ((0, 0), (0, 0), (5, 5), (0, 0))),
    ):
        np.testing.assert_allclose(scorer.score(kind, CAPTIONS), expected, rtol=0, atol=1e-6)
    tall = np.random.default_rng(2).uniform(-1, 1, (3, 10, 5, 3)).astype(np.float32)
    by_hand = resize.bilinear(tall, (16, 8))[:, 4:12]
    np.testing.assert_array_equal(scorer.score(tall, CAPTIONS), scorer.score(by_hand, CAPTIONS))
    wide = np.random.default_rng(2).uniform(-1, 1, (3, 16, 37, 3)).astype(np.float32)
    by_hand = resize.area(wide, (8, 18))[:, :, 5:13]
    np.testing.assert_array_equal(scorer.score(wide, CAPTIONS), scorer.score(by_hand, CAPTIONS))
    # Samples may overshoot; they are clipped, not scored as what no picture can be.
    np.testing.assert_array_equal(
        scorer.score(pictures * 1.5, CAPTIONS), scorer.score(np.clip(pictures * 1.5, -1, 1), CAPTIONS)
    )


def test_preprocessor_config_states_mean_and_std(tmp_path, scorer, tensors, pictures):
    np.testing.assert_allclose(scorer.mean, clip_score.MEAN, rtol=1e-6)
    np.testing.assert_allclose(scorer.std, clip_score.STD, rtol=1e-6)
    stated = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1]}
    other = ClipScorer.from_pretrained(write(tmp_path, CONFIG, tensors, **stated))
    np.testing.assert_allclose(
        other._pixels(pictures), pictures / np.array([0.5, 1, 2], np.float32), rtol=1e-5, atol=1e-6
    )
    assert abs(other.score(pictures, CAPTIONS) - scorer.score(pictures, CAPTIONS)).max() > 1e-3
    for wrong in (
        {"image_mean": [0.5]},
        {"image_std": [1, 0, 1]},
        {"image_std": 0.5},
        {"image_mean": ["a"] * 3},
    ):
        (key,) = wrong
        with pytest.raises(ValueError, match=f"preprocessor_config.json: {key} must be three"):
            ClipScorer.from_pretrained(write(tmp_path, CONFIG, tensors, **wrong))


def test_captions_are_cut(scorer, pictures):
    long = "red " * 18  # and the start and the end: 20 tokens
    with pytest.warns(UserWarning, match="caption 0 .*has 32 tokens and is cut to the limit of 20"):
        cut = scorer.score(pictures[:1], ["red " * 30])
    np.testing.assert_array_equal(cut, scorer.score(pictures[:1], [long]))


def test_wrong_pictures_and_captions_are_refused(scorer, pictures):
    for images, message in (
        (pictures[0], r"\[N, H, W, C\].*got shape \(8, 8, 3\)"),
        (pictures[:0], r"N at least 1; got shape \(0, 8, 8, 3\)"),
        (pictures[..., :1], r"\[N, H, W, 3\]; got shape \(3, 8, 8, 1\)"),
        (np.zeros((3, 8, 8, 3), np.uint8), r"float in \[-1, 1\]; got uint8"),
        (pictures * 255, r"float in \[-1, 1\]; got float32 in \[-25"),
        (pictures * np.nan, r"float in \[-1, 1\]; got float32 in \[nan"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            scorer.score(images, CAPTIONS)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="got 3 pictures and 2 captions"):
        scorer.score(pictures, CAPTIONS[:2])
    with pytest.raises(TypeError, match="must be a list of str"):
        scorer.score(pictures, "cat")


def test_what_is_no_whole_clip_is_named(tmp_path, tensors, monkeypatch):
    with pytest.raises(ValueError, match="model_type must be 'clip'.*an image half.*got 'clip_text_model'"):
        ClipScorer.from_pretrained(GOLDENS / "tiny_clip")
    with pytest.raises(ValueError, match="got 'bert'"):
        ClipScorer.from_pretrained(GOLDENS / "tiny_bert")
    with pytest.raises(ValueError, match="must hold config.json"):
        ClipScorer.from_pretrained(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="a CLIP must be a directory or a name .*openai/clip-vit"):
        ClipScorer.from_pretrained("./no/such/directory")
    text = {name: value for name, value in tensors.items() if not name.startswith("vis")}
    with pytest.raises(
        ValueError, match=r"lack the tensor vision_model.embeddings.class_embedding \(\d+ in all"
    ):
        ClipScorer.from_pretrained(write(tmp_path, CONFIG, text))
    for name in (
        "text_projection.weight",
        "vision_model.pre_layrnorm.bias",
        "text_model.final_layer_norm.bias",
    ):
        with pytest.raises(ValueError, match=rf"lack the tensor {name} \(1 in all"):
            ClipScorer.from_pretrained(
                write(tmp_path, CONFIG, {k: v for k, v in tensors.items() if k != name})
            )
    name = "vision_model.embeddings.patch_embedding.weight"
    with pytest.raises(ValueError, match=rf"{name} must have shape \(12, 3, 4, 4\).*got \(12, 3, 2, 4\)"):
        ClipScorer.from_pretrained(write(tmp_path, CONFIG, tensors | {name: np.zeros((12, 3, 2, 4), "f")}))
    with pytest.raises(ValueError, match="must hold tensors of its config.json alone; got vision_model.extra"):
        ClipScorer.from_pretrained(
            write(tmp_path, CONFIG, tensors | {"vision_model.extra": np.zeros(1, np.float32)})
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_size": 3}, "multiple of patch_size.*got 8, 3 and 3"),
        ({"num_channels": 1}, "num_channels 3; got 8, 4 and 1"),
        ({"hidden_act": "swish"}, "hidden_act must be one of.*got 'swish'"),
        ({"num_attention_heads": 5}, "multiple of num_attention_heads; got 12 and 5"),
        ({"image_size": [8, 8]}, "image_size must be a positive integer"),
    ],
)
def test_image_halves_of_other_kinds_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        clip_score.ImageConfig.from_hf(CONFIG | {"vision_config": VISION | change})


@pytest.mark.parametrize(
    ("name", "vision", "total"),
    [
        ("openai/clip-vit-base-patch32", {}, 151_277_313),
        (
            "openai/clip-vit-large-patch14",
            {
                "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
                "num_attention_heads": 16, "patch_size": 14,
            },
            427_616_513,
        ),
    ],
)  # fmt: skip
def test_published_models_have_as_many_parameters(name, vision, total):
    text = KNOWN[name].config
    config = clip_score.ImageConfig(text.width, projection_dim=text.width, **vision)
    inputs = clip_score._FAMILY.inputs(config)
    shapes = jax.eval_shape(clip_score.ImageHalf(config).init, jax.random.key(0), *inputs)
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert found + KNOWN[name].parameters + 1 == total  # the last is logit_scale


def test_published_files_leave_out_what_is_the_default():
    config = clip_score.ImageConfig.from_hf({"model_type": "clip", "text_config": {}, "vision_config": {}})
    assert config == clip_score.ImageConfig(text_width=512) and config.grid == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vision_config": VISION | {"num_hidden_layers": 10**9}},
            "lack the tensor vision_model.encoder.layers.2",
        ),
        (
            {"vision_config": VISION | {"hidden_size": 3 * 10**8}},
            "hidden_size of the config must fit the weights",
        ),
        ({"vision_config": VISION | {"image_size": 2**31 - 4}}, "of the config must fit the weights"),
        ({"vision_config": VISION | {"patch_size": 10**400}}, "patch_size must be a positive integer"),
        (
            {"vision_config": VISION | {"num_hidden_layers": "2"}},
            "num_hidden_layers must be a positive integer",
        ),
        ({"vision_config": [VISION]}, "vision_config must be an object"),
        ({"vision_config": "x"}, "vision_config must be an object"),
        ({"projection_dim": 10**9}, "projection_dim of the config must fit the weights"),
        ({"projection_dim": None}, "projection_dim must be a positive integer"),
        ({"text_config": TEXT | {"num_hidden_layers": 10**9}}, "lack the tensor text_model.encoder.layers.1"),
        ({"text_config": TEXT | {"vocab_size": 10**9}}, "vocab_size of the config must fit the weights"),
    ],
)
def test_hostile_configs_of_a_clip_are_one_line(change, message, tmp_path, tensors):
    directory = write(tmp_path / "clip", CONFIG | change, tensors)
    with pytest.raises(ValueError, match=message) as error:
        ClipScorer.from_pretrained(directory)
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


def test_an_image_half_of_nan_is_refused(tmp_path, tensors):
    name = "vision_model.post_layernorm.weight"
    damaged = tensors | {name: np.full_like(tensors[name], np.nan)}
    with pytest.raises(ValueError, match=f"the tensor {name} must be finite"):
        ClipScorer.from_pretrained(write(tmp_path / "clip", CONFIG, damaged))
