import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.text import clip, weights
from imagen_jax.text.encoder import TextEncoder
from tests.conftest import GOLDENS

TINY = json.loads((GOLDENS / "tiny_clip" / "config.json").read_text())


@pytest.mark.slow
def test_later_tokens_are_not_seen():
    module, params = weights.load_model(GOLDENS / "tiny_clip", jnp.float32)
    ids = np.arange(1, 11)[None]
    changed = np.where(np.arange(10) < 6, ids, 30)
    mask = np.ones_like(ids)
    one, other = module.apply(params, ids, mask), module.apply(params, changed, mask)
    np.testing.assert_array_equal(one[:, :6], other[:, :6])
    assert np.abs(one[:, 6:] - other[:, 6:]).min(axis=-1).max() > 0


@pytest.mark.parametrize("name", ["tiny_clip", "tiny_open_clip"])
def test_other_outputs_match_torch(name):
    golden = load_file(GOLDENS / f"{name}.safetensors")
    ids, mask = golden["input_ids"], golden["attention_mask"]

    def run(output):
        module, params = weights.load_model(GOLDENS / name, jnp.float32, output=output)
        return jax.jit(module.apply)(params, ids, mask)

    np.testing.assert_allclose(
        run("penultimate")[mask.astype(bool)], golden["penultimate"], rtol=0, atol=1e-5
    )
    pooled = run("pooled")
    assert pooled.shape == (len(ids), 1, 32)
    np.testing.assert_allclose(pooled[:, 0], golden["pooled"], rtol=0, atol=1e-5)
    assert np.abs(run("last")[mask.astype(bool)] - golden["penultimate"]).max() > 0.1


def test_pooled_is_the_hidden_state_of_the_first_end():
    # As padding may be the same token; 2 in a config means the highest id, whatever its name.
    ids = jnp.asarray([[38, 5, 39, 39, 39], [38, 39, 7, 39, 0], [38, 4, 5, 6, 39]])
    assert clip._end(ids, 39).tolist() == clip._end(ids, 2).tolist() == [2, 1, 4]
    assert clip._end(jnp.asarray([[38, 39, 7, 37, 0]]), 37).tolist() == [3]


@pytest.mark.slow
def test_pooled_text_is_a_sequence_of_one():
    encoder = TextEncoder.from_pretrained(GOLDENS / "tiny_clip", output="pooled")
    captions = ["a red cat", "the dog on the square"]
    text = encoder.encode(captions)
    assert text.embeddings.shape == (2, 1, 32) and text.mask.tolist() == [[True], [True]]
    padded = encoder.encode(captions, length=12)
    assert padded.embeddings.shape == (2, 12, 32) and padded.mask.sum() == 2
    np.testing.assert_allclose(padded.embeddings[:, :1], text.embeddings, rtol=0, atol=1e-5)
    assert not np.any(padded.embeddings[:, 1:])
    many = encoder.encode(captions * 40, length=12)
    np.testing.assert_allclose(many.embeddings[78:], padded.embeddings, rtol=0, atol=1e-5)
    assert encoder.encode(captions * 40).embeddings.shape == (80, 1, 32)
    assert [e.shape for _, e in encoder.encode_ragged(captions)] == [(1, 32)] * 2
    last = TextEncoder.from_pretrained(GOLDENS / "tiny_clip").encode(captions)
    np.testing.assert_allclose(text.embeddings[0, 0], last.embeddings[0, 4], rtol=0, atol=1e-5)


@pytest.fixture
def open_clip(tmp_path):
    """tiny_open_clip as open_clip would have written it."""
    source = GOLDENS / "tiny_open_clip"
    sizes = json.loads((source / "config.json").read_text())["text_config"]
    text = {
        "context_length": sizes["max_position_embeddings"], "vocab_size": sizes["vocab_size"],
        "width": sizes["hidden_size"], "heads": sizes["num_attention_heads"], "layers": sizes["num_hidden_layers"],
        "mlp_ratio": sizes["intermediate_size"] / sizes["hidden_size"],
    }  # fmt: skip
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": {}, "text_cfg": text}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    theirs = load_file(source / "model.safetensors")
    ours = {
        "token_embedding.weight": theirs["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": theirs["text_model.embeddings.position_embedding.weight"],
        "visual.proj": np.zeros((2, 2), np.float32), "text_projection": np.zeros((2, 2), np.float32),
        "logit_scale": np.zeros((), np.float32),
    }  # fmt: skip
    names = {
        "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
        "ln_1": "layer_norm1", "ln_2": "layer_norm2",
    }  # fmt: skip
    for kind in ("weight", "bias"):
        ours[f"ln_final.{kind}"] = theirs[f"text_model.final_layer_norm.{kind}"]
        for i in range(2):
            layer, block = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
            stacked = [theirs[f"{layer}.self_attn.{name}_proj.{kind}"] for name in "qkv"]
            ours[f"{block}.attn.in_proj_{kind}"] = np.concatenate(stacked)
            ours |= {f"{block}.{n}.{kind}": theirs[f"{layer}.{name}.{kind}"] for n, name in names.items()}
    save_file(ours, tmp_path / "open_clip_model.safetensors")
    return tmp_path, ours, config


@pytest.mark.parametrize("output", ["last", "penultimate", "pooled"])
def test_the_layout_of_open_clip(open_clip, output):
    directory, tensors, _ = open_clip
    golden = load_file(GOLDENS / "tiny_open_clip.safetensors")
    ids, mask = golden["input_ids"], golden["attention_mask"]
    _, params = weights.load_model(GOLDENS / "tiny_open_clip", jnp.float32)
    for prefix in ("", "text."):  # the second where the text half is a module of its own
        named = {name if name.startswith("visual") else prefix + name: t for name, t in tensors.items()}
        save_file(named, directory / "open_clip_model.safetensors")
        module, loaded = weights.load_model(directory, jnp.float32, output=output)
        assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, params, loaded)))
    if output != "pooled":  # the golden's end of text is not the highest id, as open_clip's is
        expected = golden["hidden" if output == "last" else output]
        np.testing.assert_allclose(
            jax.jit(module.apply)(loaded, ids, mask)[mask.astype(bool)], expected, rtol=0, atol=1e-5
        )


def test_what_open_clip_lacks_or_does_otherwise_is_named(open_clip):
    directory, tensors, config = open_clip
    name = "transformer.resblocks.1.attn.in_proj_weight"
    save_file(tensors | {name: tensors[name][:64]}, directory / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=rf"{name} must have shape \(96, 32\) .*got \(64, 32\)"):
        weights.load_model(directory, jnp.float32)
    save_file({k: v for k, v in tensors.items() if k != name}, directory / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=f"lack the tensor {name}"):
        weights.load_model(directory, jnp.float32)
    for key, value in {"pool_type": "last", "no_causal_mask": True, "hf_model_name": "roberta-base"}.items():
        changed = {
            "model_cfg": config["model_cfg"] | {"text_cfg": config["model_cfg"]["text_cfg"] | {key: value}}
        }
        with pytest.raises(ValueError, match=f"text_cfg.{key} must be .*got {value!r}"):
            clip.open_clip_config(changed)
    with pytest.raises(ValueError, match="text_cfg.vocab_size, which is missing"):
        clip.open_clip_config({"model_cfg": {}})


def test_outputs_are_checked():
    with pytest.raises(
        ValueError, match="output of CLIP must be one of last, penultimate, pooled; got 'first'"
    ):
        TextEncoder.from_pretrained(GOLDENS / "tiny_clip", output="first")
    with pytest.raises(ValueError, match="output must be 'last' for the model in .*tiny_bert; got 'pooled'"):
        TextEncoder.from_pretrained(GOLDENS / "tiny_bert", output="pooled")


def test_the_whole_model_names_its_text_half():
    whole = json.loads((GOLDENS / "tiny_open_clip" / "config.json").read_text())
    assert clip.ClipConfig.from_hf(whole) == clip.ClipConfig.from_hf(whole["text_config"])
    assert clip.ClipConfig.from_hf(whole).hidden_act == "gelu"
    # Published files leave out what is the default.
    assert clip.ClipConfig.from_hf({"model_type": "clip", "text_config": {}}) == clip.ClipConfig()


def test_too_many_tokens_and_other_models_are_refused():
    module, params = weights.load_model(GOLDENS / "tiny_clip", jnp.float32)
    with pytest.raises(ValueError, match="at most 20 tokens.*got 21"):
        module.apply(params, np.zeros((1, 21), np.int32), np.ones((1, 21), np.int32))
    with pytest.raises(ValueError, match="hidden_act must be one of.*got 'swish'"):
        clip.ClipConfig.from_hf({**TINY, "hidden_act": "swish"})
    with pytest.raises(ValueError, match="multiple of num_attention_heads; got 32 and 5"):
        clip.ClipConfig.from_hf({**TINY, "num_attention_heads": 5})


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("text_model.final_layer_norm.bias", "text_model.final_layer_norm.bias"),
        ("final_layer_norm.bias", "text_model.final_layer_norm.bias"),
        ("text_model.embeddings.position_ids", None),
        ("vision_model.embeddings.class_embedding", None),
        ("text_projection.weight", None),
        ("logit_scale", None),
    ],
)
def test_names_of_both_kinds_of_checkpoints(name, canonical):
    assert clip.canonical_name(name) == canonical
