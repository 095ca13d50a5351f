"""Makes the goldens of CLIP score: two random CLIPs and their outputs by torch and transformers on the CPU.

Run where torch and transformers are installed (the committed file: torch 2.13.0, transformers 5.23.0,
seed 0; the versions are in its metadata), with no argument, after make_text_goldens.py:

    pip install torch==2.13.0 transformers==5.23.0 safetensors
    python tests/goldens/make_clip_score_goldens.py

Writes clip_score.safetensors beside itself. For each model, quick_gelu (as OpenAI's weights, with the wrong
end-of-text token that older configs state) and gelu (as OpenCLIP's):
  NAME/weights/...  the tensors of its model.safetensors
  NAME/cosine [pictures, captions]  of the projected embeddings
and once: pictures [N, 16, 16, 3] in [-1, 1]. Metadata: NAME/config, each config.json; captions, which
tiny_clip/tokenizer.json cuts at 20 tokens; mean and std that pictures are normalised by.
"""

import json
import pathlib
import tempfile

import numpy as np
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file, save_file

HERE = pathlib.Path(__file__).parent
SEED = 0
CAPTIONS = [
    "a red cat",
    "the dog on the square",
    "blue",
    "a green circle in the left of a red square on the blue dog in a circle of the right cat on a dog",
]
MEAN, STD = [0.5, 0.4, 0.6], [0.3, 0.25, 0.2]


def main() -> None:
    torch.manual_seed(SEED)
    pictures = np.random.default_rng(SEED).uniform(-1, 1, (3, 16, 16, 3)).astype(np.float32)
    pixels = ((pictures.astype(np.float64) + 1) / 2 - MEAN) / STD
    tokenizer = tokenizers.Tokenizer.from_file(str(HERE / "tiny_clip" / "tokenizer.json"))
    tokenizer.enable_truncation(20)
    tokenizer.enable_padding(pad_id=39)
    encodings = tokenizer.encode_batch(CAPTIONS)
    inputs = {
        "pixel_values": torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float(),
        "input_ids": torch.tensor([encoding.ids for encoding in encodings]),
        "attention_mask": torch.tensor([encoding.attention_mask for encoding in encodings]),
    }
    tensors, metadata = {"pictures": pictures}, {}
    for name, eos_token_id in (("quick_gelu", 2), ("gelu", 39)):
        model = make_model(name, eos_token_id)
        with torch.no_grad():
            cosine = model(**inputs).logits_per_image / model.logit_scale.exp()
        tensors[f"{name}/cosine"] = np.ascontiguousarray(cosine.numpy())  # others are saved transposed
        with tempfile.TemporaryDirectory() as directory:
            model.save_pretrained(directory)
            weights = load_file(pathlib.Path(directory) / "model.safetensors")
            metadata[f"{name}/config"] = (pathlib.Path(directory) / "config.json").read_text()
        tensors |= {f"{name}/weights/{key}": value for key, value in weights.items()}
    metadata |= {
        "captions": json.dumps(CAPTIONS),
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "seed": str(SEED),
    }
    save_file(tensors, HERE / "clip_score.safetensors", metadata)


def make_model(hidden_act: str, eos_token_id: int) -> transformers.CLIPModel:
    """A CLIP whose every tensor is random, so that no two can be confused unnoticed."""
    text = {
        "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 20, "bos_token_id": 38, "hidden_act": hidden_act,
        "eos_token_id": eos_token_id,
    }  # fmt: skip
    vision = {
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
        "image_size": 16, "patch_size": 4, "hidden_act": hidden_act,
    }  # fmt: skip
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


if __name__ == "__main__":
    main()
