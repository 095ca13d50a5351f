"""Makes the goldens of the T5 family's tokenizers: ids by the slow T5Tokenizer, which calls sentencepiece.

Run where transformers 4 is installed, the last to have it (the committed files: transformers 4.57.1, sentencepiece
0.2.3; the versions are in the file), with no argument:

    pip install transformers==4.57.1 sentencepiece==0.2.3 protobuf
    python tests/goldens/make_tokenizer_goldens.py

Writes beside itself:
  sentencepiece/*.model  small sentencepiece models, one for each way that the family's were trained
  tokenizers.json  captions, and for each layout its model, settings, size and ids
"""

import io
import json
import pathlib

import sentencepiece
import transformers
from transformers import T5Tokenizer

HERE = pathlib.Path(__file__).parent
TEXT = """a photograph of a corgi riding a bicycle in Times Square
Sprouts in the shape of the text 'Imagen' coming out of a fairytale book.
A blue jay standing on a large basket of rainbow macarons, 35 mm, extremely detailed
Ein Bär über dem Fluß mit roten Äpfeln und grünen Birnen
北京 的 猫 在 红色 的 房子 上
a red cube left of a green sphere, a blue circle right of a yellow square
"""
CAPTIONS = [
    "a photograph of a corgi riding a bicycle in Times Square",
    "",
    " ",
    "  two  spaces \t and\na line ",
    "\ufb01ne \uff26\uff35\uff2c\uff2c\u3000width\u00a0x\u200b y",
    "Ein Bär über dem Fluß; 北京 的 猫 — naïve café \U0001f43b",
    "e\u0301 and \u00e9",
    "\U0001f9ff zebra 9 0123456789",
    "\U0001f43b\U0001f43b\U0001f43b",
    "\u2581a\u2581 b",
    "a <extra_id_0> cube <extra_id_1>.",
    "<extra_id_1><extra_id_0>a",
    "the end</s> a <pad><unk> cube",
    "<extra_id_99> <extra_id_7> <extra_id_100> <EXTRA_ID_0>",
    "a [star] and a[star]b [STAR] <s>",
    "\U0001d518\U0001d52b\U0001d526 \u0000 \u007f \ufeff",
    "word " * 40,
]
SENTINELS = [f"<extra_id_{i}>" for i in range(6)]
# Name -> how it is trained. The published models of T5 have a normalisation, mT5's and UMT5's bytes in place of
# characters that they lack.
MODELS = {
    "t5": {"vocab_size": 150, "normalization_rule_name": "nmt_nfkc"},
    "t5_sentinels": {
        "vocab_size": 150,
        "normalization_rule_name": "identity",
        "user_defined_symbols": [*reversed(SENTINELS), "[star]"],
    },
    "mt5": {
        "vocab_size": 400,
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "split_digits": True,
        "user_defined_symbols": [f"\u2581{token}" for token in reversed(SENTINELS)],
    },
    "umt5": {
        "vocab_size": 400,
        "normalization_rule_name": "identity",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "bos_id": 2,
        "unk_id": 3,
    },
    "bpe": {
        "vocab_size": 150,
        "normalization_rule_name": "identity",
        "model_type": "bpe",
        "control_symbols": ["<ctrl>"],
    },
}


def spelled(token: str, **how: bool) -> dict[str, object]:
    return {"content": token, "special": True, "normalized": False, "lstrip": False, "rstrip": False} | how


# Layout -> (model, tokenizer_config.json or None for none, how transformers must be called, tokens the model has
# beyond those of the tokenizer).
LAYOUTS = {
    "t5": ("t5", {"tokenizer_class": "T5Tokenizer", "extra_ids": 100}, {}, 28),
    "t5_listed": ("t5", {"additional_special_tokens": [f"<extra_id_{i}>" for i in range(100)]}, {}, 28),
    "t5_alone": ("t5", None, {"extra_ids": 100}, 28),
    "t5_null": ("t5", {"extra_ids": None, "additional_special_tokens": None}, {"extra_ids": 100}, 0),
    "t5_without_sentinels": ("t5", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}, {}, 28),
    "t5_no_room": ("t5", None, {"extra_ids": 0}, 28),
    "t5_decoder": (
        "t5",
        {
            "extra_ids": 2,
            "additional_special_tokens": ["<extra_id_0>", "<extra_id_1>"],
            "added_tokens_decoder": {
                "0": spelled("<pad>"),
                "1": spelled("</s>"),
                "2": spelled("<unk>"),
                "98": spelled("<extra_id_1>", lstrip=True, rstrip=True),
                "99": spelled("<extra_id_0>", lstrip=True, rstrip=True),
                "100": spelled("[star]"),
            },
        },
        {},
        3,
    ),
    "t5_in_model": ("t5_sentinels", {"extra_ids": 0}, {}, 0),
    "t5_in_model_alone": ("t5_sentinels", None, {"extra_ids": 0}, 128),
    "mt5": ("mt5", {"tokenizer_class": "MT5Tokenizer"}, {"extra_ids": 0}, 12),
    "mt5_class": ("mt5", {"tokenizer_class": "T5Tokenizer", "extra_ids": 0}, {}, 12),
    "mt5_alone": ("mt5", None, {"extra_ids": 0}, 112),
    "umt5": (
        "umt5",
        {
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": 300,
            "bos_token": "<s>",
            "additional_special_tokens": [f"<extra_id_{i}>" for i in range(300)],
        },
        {},
        84,
    ),
    "umt5_class": ("umt5", {"tokenizer_class": "UMT5Tokenizer", "extra_ids": 300}, {}, 84),
    "umt5_alone": ("umt5", None, {"extra_ids": 100}, 84),
    "bpe": ("bpe", {"extra_ids": 6}, {}, 0),
}


def main() -> None:
    directory = HERE / "sentencepiece"
    directory.mkdir(exist_ok=True)
    for name, options in MODELS.items():
        defaults = {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
        model = io.BytesIO()
        # One thread: the result depends on the order of the sums.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXT.splitlines() * 8), model_writer=model, hard_vocab_limit=False, num_threads=1,
            minloglevel=2, **(defaults | options),
        )  # fmt: skip
        (directory / f"{name}.model").write_bytes(model.getvalue())
    layouts = {}
    for name, (model, config, options, beyond) in LAYOUTS.items():
        layouts[name] = {"model": model, "config": config}
        known = {key: value for key, value in (config or {}).items() if value is not None}
        known.pop("tokenizer_class", None)
        decoder = {
            int(id): transformers.AddedToken(**token)
            for id, token in known.pop("added_tokens_decoder", {}).items()
        }
        tokenizer = T5Tokenizer(
            str(directory / f"{model}.model"),
            **known,
            **options,
            **({"added_tokens_decoder": decoder} if decoder else {}),
        )
        layouts[name]["vocab_size"] = len(tokenizer) + beyond
        layouts[name]["ids"] = [tokenizer(caption).input_ids for caption in CAPTIONS]
    found = {
        "transformers": transformers.__version__,
        "sentencepiece": sentencepiece.__version__,
        "captions": CAPTIONS,
        "layouts": layouts,
    }
    (HERE / "tokenizers.json").write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
