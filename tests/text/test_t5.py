import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.text import t5, weights
from imagen_jax.text.encoder import TextEncoder
from tests.conftest import GOLDENS

TINY = json.loads((GOLDENS / "tiny_t5_v1_1" / "config.json").read_text())


def test_goldens_reach_beyond_the_positions():
    length = load_file(GOLDENS / "tiny_t5.safetensors")["input_ids"].shape[1]
    assert length > 2 * TINY["relative_attention_max_distance"]


def test_buckets():
    # From the definition: 16 buckets a side, exact below 8, then logarithmic up to 128.
    buckets = np.asarray(t5.relative_position_bucket(jnp.arange(-200, 201), 32, 128))
    behind, ahead = buckets[:200][::-1], buckets[201:]
    assert buckets[200] == 0
    np.testing.assert_array_equal(behind[:7], np.arange(1, 8))
    np.testing.assert_array_equal(ahead, behind + 16)
    assert (np.diff(behind) >= 0).all() and set(behind) == set(range(1, 16))
    assert (behind[127:] == 15).all() and behind[14] < behind[15] == 10  # 16 = 8 * 16^(2/8)


@pytest.mark.parametrize("key", ["d_model", "num_layers", "vocab_size"])
def test_incomplete_configs_are_refused(key):
    with pytest.raises(ValueError, match=f"{key}, which is missing"):
        t5.T5Config.from_hf({k: v for k, v in TINY.items() if k != key})


def test_unsupported_models_are_refused():
    with pytest.raises(ValueError, match="feed_forward_proj must be one of.*got 'swish'"):
        t5.T5Config.from_hf({**TINY, "feed_forward_proj": "swish"})


def test_whole_models_and_tied_tables_load(tmp_path):
    source = GOLDENS / "tiny_t5_v1_1"
    tensors = load_file(source / "model.safetensors")
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()
    tensors |= {"decoder.embed_tokens.weight": np.zeros(3), "lm_head.weight": np.zeros(3)}
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    save_file(tensors, tmp_path / "model.safetensors")
    _, params = weights.load_model(tmp_path, jnp.float32)
    _, expected = weights.load_model(source, jnp.float32)
    assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, params, expected)))
    tensors["encoder.embed_tokens.weight"] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="(shared|embed_tokens).weight must be there once; got it twice"):
        weights.load_model(tmp_path, jnp.float32)


def test_as_a_text_encoder():
    encoder = TextEncoder.from_pretrained(GOLDENS / "tiny_t5_v1_1")
    assert (encoder.width, encoder.max_length) == (32, 64)
    assert encoder.token_ids(["a red cat"])[0][-1] == 1  # </s>
    text = encoder.encode(["a red cat", "blue circle left of the green square"])
    assert text.embeddings.shape == (2, 8, 32)
    alone = encoder.encode(["a red cat"], length=32)
    real = np.asarray(text.mask[0])
    np.testing.assert_allclose(
        np.asarray(text.embeddings[0])[real],
        np.asarray(alone.embeddings[0])[np.asarray(alone.mask[0])],
        rtol=0,
        atol=1e-5,
    )
