import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.text import clip, pretrained

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
TINY = json.loads((GOLDENS / "tiny_clip" / "config.json").read_text())


def test_later_tokens_are_not_seen():
    module, params = pretrained.load_model(GOLDENS / "tiny_clip", jnp.float32)
    ids = np.arange(1, 11)[None]
    changed = np.where(np.arange(10) < 6, ids, 30)
    mask = np.ones_like(ids)
    one, other = module.apply(params, ids, mask), module.apply(params, changed, mask)
    np.testing.assert_array_equal(one[:, :6], other[:, :6])
    assert np.abs(one[:, 6:] - other[:, 6:]).min(axis=-1).max() > 0


def test_the_whole_model_names_its_text_half():
    whole = json.loads((GOLDENS / "tiny_open_clip" / "config.json").read_text())
    assert clip.ClipConfig.from_hf(whole) == clip.ClipConfig.from_hf(whole["text_config"])
    assert clip.ClipConfig.from_hf(whole).hidden_act == "gelu"
    # Published files leave out what is the default.
    assert clip.ClipConfig.from_hf({"model_type": "clip", "text_config": {}}) == clip.ClipConfig()


def test_too_many_tokens_and_other_models_are_refused():
    module, params = pretrained.load_model(GOLDENS / "tiny_clip", jnp.float32)
    with pytest.raises(ValueError, match="at most 20 tokens.*got 21"):
        module.apply(params, np.zeros((1, 21), np.int32), np.ones((1, 21), np.int32))
    with pytest.raises(ValueError, match="hidden_act must be one of.*got 'swish'"):
        clip.ClipConfig.from_hf({**TINY, "hidden_act": "swish"})
    with pytest.raises(ValueError, match="multiple of num_attention_heads, got 32 and 5"):
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
