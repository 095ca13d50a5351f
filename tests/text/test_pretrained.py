"""Published weights: what names hold a tensor, revisions, sizes that do not fit, damaged files."""

import json
import pathlib
import shutil
import struct

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from imagen_jax.text import families, pretrained, weights
from imagen_jax.text.encoder import TextEncoder

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


@pytest.fixture
def model(tmp_path):
    """Copies a golden model; `change` is applied to its tensors, `config` to its config.json."""

    def copy(name, change=lambda tensors: None, **config):
        directory = shutil.copytree(GOLDENS / name, tmp_path / "model", dirs_exist_ok=True)
        tensors = load_file(directory / "model.safetensors")
        tensors = change(tensors) or tensors
        save_file(tensors, directory / "model.safetensors")
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return directory

    return copy


# --- names of a tied table ----------------------------------------------------------------------


def moved(*names, table="shared.weight"):
    """Takes the token table from its own name; it, or for (name, value) that value, goes under `names`."""

    def change(tensors):
        values = tensors.pop(table)
        for name in names:
            name, fill = name if isinstance(name, tuple) else (name, None)
            tensors[name] = values.copy() if fill is None else np.full_like(values, fill)
        return tensors

    return change


DECODER, HEAD = "decoder.embed_tokens.weight", "lm_head.weight"
BERT_TABLE, BERT_HEAD = "embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
CLIP_TABLE = "embeddings.token_embedding.weight"


@pytest.mark.parametrize(
    ("name", "change", "config", "loads"),
    [
        ("tiny_t5", moved(DECODER), {}, True),
        ("tiny_t5", moved(HEAD), {}, True),
        ("tiny_t5", moved(HEAD), {"tie_word_embeddings": True}, True),
        ("tiny_t5", moved(HEAD), {"tie_word_embeddings": None}, True),
        ("tiny_t5", moved("encoder.embed_tokens.weight"), {"tie_word_embeddings": False}, True),
        # Encoder and decoder share their table in v1.1 too; the head does not.
        ("tiny_t5_v1_1", moved(DECODER), {"tie_word_embeddings": False}, True),
        ("tiny_t5_v1_1", moved(DECODER, (HEAD, 7)), {"tie_word_embeddings": False}, True),
        ("tiny_t5_v1_1", moved(HEAD), {"tie_word_embeddings": False}, False),
        ("tiny_t5_v1_1", moved(HEAD), {"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ("tiny_umt5", moved(HEAD), {"tie_word_embeddings": False}, False),
        ("tiny_umt5", moved(DECODER), {"tie_word_embeddings": False}, True),
        ("tiny_byt5", moved(DECODER, (HEAD, 7)), {"tie_word_embeddings": False}, True),
        # Its own name comes first, whatever stands under the others.
        ("tiny_t5", moved("shared.weight", (HEAD, 7), (DECODER, 7)), {}, True),
        ("tiny_t5", moved(DECODER, (HEAD, 7)), {}, True),
        ("tiny_bert", moved(BERT_HEAD, table=BERT_TABLE), {}, True),
        ("tiny_bert", moved("bert." + BERT_TABLE, (BERT_HEAD, 7), table=BERT_TABLE), {}, True),
        ("tiny_bert", moved(BERT_HEAD, table=BERT_TABLE), {"tie_word_embeddings": False}, False),
        ("tiny_bert", moved(HEAD, table=BERT_TABLE), {}, False),
        ("tiny_clip", moved(HEAD, table=CLIP_TABLE), {}, False),
        ("tiny_clip", moved("text_model." + CLIP_TABLE, table=CLIP_TABLE), {}, True),
    ],
)
def test_where_the_token_table_may_be(name, change, config, loads, model):
    directory = model(name, change, **config)
    module = families.make_module(directory, jnp.float32)
    if not loads:
        with pytest.raises(
            ValueError, match="lack the tensor|which a model of this config.json does not have"
        ):
            weights.locate(directory, module)
        return
    located = {tensor.path: weights._read(tensor) for tensor in weights.locate(directory, module)}
    original = weights.locate(GOLDENS / name, families.make_module(GOLDENS / name, jnp.float32))
    assert len(located) == len(original)
    for tensor in original:
        np.testing.assert_array_equal(located[tensor.path], weights._read(tensor))


def test_a_tied_table_changes_no_fingerprint_and_no_embedding_but_by_its_weights(model):
    """What the head is tied to is no part of the encoder: caches stay valid."""
    tied, untied = model("tiny_t5", tie_word_embeddings=True), None
    first = families.make_module(tied, jnp.float32)
    untied = model("tiny_t5", tie_word_embeddings=False)
    second = families.make_module(untied, jnp.float32)
    assert first == second and hash(first) == hash(second) and repr(first.config) == repr(second.config)


# --- revisions ----------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """The calls of a hub that has the tiny BERT under every name."""
    import huggingface_hub

    calls = []

    def fake(name, revision=None, allow_patterns=None, ignore_patterns=None):
        calls.append((name, revision))
        return str(GOLDENS / "tiny_bert")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
    return calls


@pytest.mark.parametrize(
    ("given", "name", "revision"),
    [
        ("some/model", "some/model", None),
        ("some/model@main", "some/model", "main"),
        ("some/model@refs/pr/2", "some/model", "refs/pr/2"),
        ("some/model@v1.0", "some/model", "v1.0"),
        ("model@" + "a" * 40, "model", "a" * 40),
        ("t5-v1_1-xxl@refs/pr/2", "google/t5-v1_1-xxl", "refs/pr/2"),
        ("google/t5-v1_1-xxl@main", "google/t5-v1_1-xxl", "main"),
        # Another revision than the one whose package and hash are known.
        (
            "all-MiniLM-L6-v2@5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
            "sentence-transformers/all-MiniLM-L6-v2",
            "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
        ),
    ],
)
def test_a_name_may_have_a_revision(given, name, revision, hub):
    encoder = TextEncoder.from_pretrained(given)
    assert hub == [(name, revision)] and encoder.name == given


def test_a_revision_is_no_part_of_the_fingerprint(hub):
    named, revision = (TextEncoder.from_pretrained(f"some/model{at}") for at in ("", "@main"))
    assert (
        named.fingerprint
        == revision.fingerprint
        == TextEncoder.from_pretrained(GOLDENS / "tiny_bert").fingerprint
    )
    assert "some/model@main" in revision.description


def test_a_directory_with_an_at_is_a_directory(tmp_path, hub):
    directory = shutil.copytree(GOLDENS / "tiny_bert", tmp_path / "model@main")
    assert pretrained.resolve(directory) == directory and not hub


@pytest.mark.parametrize(
    "given",
    [
        *(
            "some/model@",
            "@main",
            "some/model@@main",
            "some/model@-x",
            "a/b/c@main",
            "some/model@a b",
            "~nobody/x@y",
        ),
        *("a\0b", "x" * 5000, "x@" + "y" * 5000),
    ],
)
def test_what_is_no_name_is_one_line(given, hub):
    with pytest.raises(ValueError, match="neither") as error:
        TextEncoder.from_pretrained(given)
    assert "\n" not in str(error.value) and len(str(error.value)) < 700 and not hub


@pytest.mark.parametrize("given", [None, 5, b"some/model", ["some/model"]])
def test_a_name_is_text(given):
    with pytest.raises(ValueError, match="must be a directory or a name"):
        TextEncoder.from_pretrained(given)


# --- sizes that do not fit, and files that are none ---------------------------------------------

BOUNDED = [
    ("tiny_bert", {"num_hidden_layers": 10**9}, "lack the tensor encoder.layer.2.*10000 or more"),
    ("tiny_bert", {"num_hidden_layers": 3}, "lack the tensor encoder.layer.2"),
    ("tiny_bert", {"num_hidden_layers": 1}, "which a model of this config.json does not have"),
    ("tiny_bert", {"vocab_size": 10**9}, "vocab_size of the config must fit the weights, whose longest axis has 64"),
    ("tiny_bert", {"vocab_size": 10**12}, "vocab_size must be a positive integer below 2"),
    ("tiny_bert", {"vocab_size": 22}, "must have shape .22, 32. as config.json says; got .21, 32."),
    ("tiny_bert", {"hidden_size": 64}, "must have shape"),
    ("tiny_bert", {"hidden_size": 2**30}, "hidden_size of the config must fit the weights"),
    ("tiny_bert", {"intermediate_size": 10**8}, "intermediate_size of the config must fit the weights"),
    ("tiny_bert", {"max_position_embeddings": 10**9}, "max_position_embeddings of the config must fit"),
    ("tiny_bert", {"type_vocab_size": 10**9}, "type_vocab_size of the config must fit"),
    ("tiny_bert", {"num_attention_heads": 10**9}, "hidden_size must be a multiple of num_attention_heads"),
    ("tiny_t5", {"num_layers": 10**9}, "lack the tensor encoder.block.2.*10000 or more"),
    ("tiny_umt5", {"num_layers": 10**9}, "lack the tensor encoder.block.2"),
    ("tiny_t5", {"vocab_size": 10**12}, "vocab_size must be a positive integer below 2"),
    ("tiny_t5", {"d_kv": 10**9}, "d_kv of the config must fit the weights"),
    ("tiny_t5", {"d_ff": 10**9}, "d_ff of the config must fit the weights"),
    ("tiny_t5", {"num_heads": 10**9}, "num_heads of the config must fit the weights"),
    ("tiny_t5", {"relative_attention_num_buckets": 10**9 * 2}, "max_distance must be more than a quarter"),
    ("tiny_t5", {"relative_attention_max_distance": 10**400}, "max_distance must be a positive integer below 2"),
    ("tiny_byt5", {"num_layers": 10**9}, "lack the tensor encoder.block.1"),
    ("tiny_clip", {"num_hidden_layers": 10**9}, "lack the tensor text_model.encoder.layers.2"),
    ("tiny_clip", {"vocab_size": 2**31 - 1}, "vocab_size of the config must fit the weights"),
    ("tiny_clip", {"max_position_embeddings": 10**9}, "max_position_embeddings of the config must fit"),
    ("tiny_clip", {"eos_token_id": 2**63}, "eos_token_id must be a positive integer below 2"),
    ("tiny_open_clip", {"text_config": {"num_hidden_layers": 10**9}}, "lack the tensor|must fit the weights"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "config", "message"), BOUNDED)
def test_sizes_are_bounded_by_the_weights(name, config, message, model, monkeypatch):
    directory = model(name, **config)
    if "must have shape" not in message and "does not have" not in message:  # small enough to be built
        monkeypatch.setattr(weights, "_shapes", lambda *_: pytest.fail("a network was built"))
    with pytest.raises(ValueError, match=message) as error:
        weights.locate(directory, families.make_module(directory, jnp.float32))
    assert str(directory) in str(error.value) and "\n" not in str(error.value)


WRONG = [None, [], {}, "64", "", True, 0, -1, 2.5, 1e300, float("nan"), 10**400]
FIELDS = [
    ("tiny_bert", ("vocab_size", "num_hidden_layers", "num_attention_heads", "type_vocab_size")),
    (
        "tiny_t5",
        ("d_model", "num_layers", "relative_attention_num_buckets", "relative_attention_max_distance"),
    ),
    ("tiny_clip", ("hidden_size", "num_hidden_layers", "eos_token_id")),
]


@pytest.mark.parametrize(("name", "fields"), FIELDS)
def test_wrong_types_of_sizes_are_one_line(name, fields, tmp_path):
    config = json.loads((GOLDENS / name / "config.json").read_text())
    for field in fields:
        for value in WRONG:
            (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
            with pytest.raises(ValueError, match=f"config.json: {field} must be a positive integer") as error:
                families.read_config(tmp_path)
            assert str(tmp_path) in str(error.value) and len(str(error.value)) < 400


NAN, INF = float("nan"), float("inf")
OTHERS = [
    ("tiny_bert", "model_type", "config.json: model_type must be one of", (None, [], {}, 5)),
    (
        "tiny_bert",
        "layer_norm_eps",
        "layer_norm_eps must be a number",
        ("1", None, -1, 2, [], NAN, INF, True),
    ),
    ("tiny_bert", "hidden_act", "hidden_act must be 'gelu'", (None, ["gelu"], {}, 1, "a" * 3000)),
    ("tiny_bert", "is_decoder", "is_decoder must be False", ("no", [1], None)),
    ("tiny_t5", "feed_forward_proj", "feed_forward_proj must be", ([], {}, None, 5, "glu")),
    ("tiny_t5", "layer_norm_epsilon", "layer_norm_epsilon must be a number", ("x", {}, 10**400)),
    ("tiny_clip", "hidden_act", "hidden_act must be", ([], None, 5, "swish")),
    ("tiny_open_clip", "text_config", "text_config must be an object", ([1], "x", 5, True)),
]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [(name, {key: value}, message) for name, key, message, values in OTHERS for value in values],
)
def test_wrong_types_of_the_rest_are_one_line(name, config, message, tmp_path):
    whole = json.loads((GOLDENS / name / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(ValueError, match=message) as error:
        families.read_config(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("config", [
    {"model_cfg": []}, {"model_cfg": {"text_cfg": 5}}, {"model_cfg": {"text_cfg": []}}, {"model_cfg": "x"}, {},
    {"model_cfg": {"text_cfg": {"vocab_size": 40, "width": "32", "layers": 2, "heads": 4, "context_length": 20}}},
    {"model_cfg": {"text_cfg": {"vocab_size": 40, "width": 32, "layers": 2, "heads": 4, "context_length": 20,
                                "mlp_ratio": "4"}}},
    {"model_cfg": {"text_cfg": {"vocab_size": 40, "width": 32, "layers": 2, "heads": 4, "context_length": 20,
                                "mlp_ratio": 1e300}}},
])  # fmt: skip
def test_wrong_types_in_a_config_of_open_clip_are_one_line(config, tmp_path):
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="open_clip") as error:
        families.read_config(tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"5", b'"x"', b"\xff\xfe{", b"\x80", b"[" * 100_000]
    + [b'{"a": ' * 100_000, b'{"a": ' + b"1" * 5000],
)  # fmt: skip
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_what_is_no_json_object_is_named(content, file, model):
    directory = model("tiny_bert")
    (directory / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"{directory / file} must ") as error:
        TextEncoder.from_pretrained(directory)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


@pytest.mark.parametrize(
    ("value", "length"),
    [
        (20, 20), (20.0, 20), (10**30, 48), (1e30, 48), (10**8, 48), (float("inf"), 48), (None, 48), (64, 48),
        ("20", None), ([], None), ({}, None), (True, None), (0, None), (-5, None), (0.5, None), (20.5, None),
        (float("nan"), None),
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "where", ["tokenizer_config.json: model_max_length", "sentence_bert_config.json: max_seq_length"]
)
def test_the_length_that_a_model_states(where, value, length, model):
    directory, (file, key) = model("tiny_bert"), where.split(": ")
    path = directory / file
    path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | {key: value}))
    if length is None:
        with pytest.raises(ValueError, match=f"{path}: {key} must be a whole number from 1; got"):
            TextEncoder.from_pretrained(directory)
    else:
        assert TextEncoder.from_pretrained(directory).max_length == length


def header(content, data=b"", length=None):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def entry(start=0, end=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        header(b"{}", length=2**60), header(b"{}", length=2**64 - 1), header(b"{}", length=10**8), b"", b"\0" * 7,
        header({"a": entry(), "b": entry(4, 12)}, bytes(12)),
        header({"a": entry(8, 16)}, bytes(16)),
        header({"a": entry(8, 0)}, bytes(8)),
        header({"a": entry(0, 2**62)}, bytes(8)),
        header({"a": entry(shape=(2**62, 2**62))}, bytes(8)),
        header({"a": entry(shape=(-2,))}, bytes(8)),
        header({"a": entry(shape=("2",))}, bytes(8)),
        header({"a": entry(dtype="F33")}, bytes(8)),
        header({"a": entry(dtype=5)}, bytes(8)),
        header({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
        header({"a": []}), header([1]), header(b"null"),
        header(b'{"\xff": ' + json.dumps(entry()).encode() + b"}", bytes(8)),
        header(b'{"\\ud800": ' + json.dumps(entry()).encode() + b"}", bytes(8)),
        header(b"[" * 100_000), header(b'{"a":' * 100_000),
        header({"a": entry()}, bytes(4)), header({"a": entry()}, bytes(16)), header(b" " * (17 << 20)),
    ],
)  # fmt: skip
def test_hostile_headers_are_one_line(content, model):
    directory = model("tiny_bert")
    path = directory / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{path} is not a readable safetensors file") as error:
        TextEncoder.from_pretrained(directory)
    assert "\n" not in str(error.value) and len(str(error.value)) < 600


def test_weights_without_a_tensor_lack_the_first(model):
    directory = model("tiny_bert")
    (directory / "model.safetensors").write_bytes(header({}))
    with pytest.raises(ValueError, match="must fit the weights, whose longest axis has 0"):
        TextEncoder.from_pretrained(directory)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "a/b", "..", "."])
def test_shards_lie_beside_their_index(name, model):
    directory = model("tiny_bert")
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="must name files beside it|not there"):
        TextEncoder.from_pretrained(directory)


# --- numbers that are none ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [
        ("embeddings.word_embeddings.weight", np.nan, "float32"),
        ("embeddings.word_embeddings.weight", np.inf, "int8"),
        ("embeddings.token_type_embeddings.weight", np.nan, "int8"),
        ("embeddings.LayerNorm.weight", np.nan, "bfloat16"),
        ("embeddings.LayerNorm.bias", -np.inf, "int8"),
        ("encoder.layer.0.attention.self.query.weight", np.inf, "float32"),
    ],
)
def test_weights_that_are_not_finite_are_refused(name, value, dtype, model):
    directory = model("tiny_bert", lambda tensors: tensors[name].reshape(-1).__setitem__(-1, value))
    encoder = TextEncoder.from_pretrained(directory, dtype)
    with pytest.raises(
        ValueError, match=f"model.safetensors: the tensor {name} must be finite as .*got NaN or inf"
    ):
        encoder.params  # noqa: B018


def test_float64_beyond_float32_is_refused(model):
    def huge(tensors):
        name = "encoder.layer.0.output.dense.bias"
        tensors[name] = np.full(tensors[name].shape, 1e300)

    with pytest.raises(ValueError, match="encoder.layer.0.output.dense.bias must be finite as float32"):
        TextEncoder.from_pretrained(model("tiny_bert", huge)).params  # noqa: B018


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        ([[21]], [[1]], "from 0 to 20, the model's vocabulary; got 21"),
        ([[-1]], [[1]], "from 0 to 20, the model's vocabulary; got -1"),
        ([[5, 2**31 - 1]], [[1, 0]], "got 2147483647"),
        ([5], [1], r"array \[B, L\]"),
        ([[5]], [[1, 1]], r"array \[B, L\]"),
        ([[5.0]], [[1]], r"array \[B, L\]"),
        ([[True]], [[1]], r"array \[B, L\]"),
    ],
)
def test_ids_outside_of_the_vocabulary_are_refused(ids, mask, message):
    encoder = TextEncoder.from_pretrained(GOLDENS / "tiny_bert")
    for array in (np.asarray, jnp.asarray):
        with pytest.raises(ValueError, match=message):
            encoder.embed(array(ids), array(mask))
    with pytest.raises(ValueError, match="got shapes"):
        encoder.embed([[5]], [[1]])


def test_a_tokenizer_beyond_the_vocabulary_is_refused_at_the_caption(monkeypatch):
    encoder = TextEncoder.from_pretrained(GOLDENS / "tiny_bert")
    monkeypatch.setattr(encoder._tokenizer, "encode", lambda captions: [[2, 21, 3] for _ in captions])
    with pytest.raises(ValueError, match="below the model's vocabulary of 21; got 21 for 'a cat'"):
        encoder.encode(["a cat"])
