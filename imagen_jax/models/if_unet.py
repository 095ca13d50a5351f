"""The networks of DeepFloyd IF, a base and a super-resolution stage, with the options of the published weights."""

import dataclasses
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax import checks
from imagen_jax.checks import require
from imagen_jax.models.architecture import MAX_CHANNELS, check_tuples
from imagen_jax.models.attention import AttentionPool
from imagen_jax.models.blocks import Block, output_layers
from imagen_jax.models.conditioning import StepEmbedding, check_call, conditioning_images
from imagen_jax.models.layers import Dtype, InputConv, Style, cached, gelu
from imagen_jax.models.network import NETWORKS, NetworkConfig, Remat
from imagen_jax.models.unet import may_attend, run_levels
from imagen_jax.structs import Cond, TextCond

TEXT_GROUPS = 32  # of the norm of the text, whatever the groups of the other norms


@NETWORKS.register("if_unet")
@dataclasses.dataclass(frozen=True)
class IFUNetConfig(NetworkConfig):
    """A network of DeepFloyd IF; the defaults are those of IF-I-M. Lists have one entry for each resolution, highest
    first."""

    channels: tuple[int, ...] = (192, 384, 576, 768)
    """Channels at each resolution."""
    num_res_blocks: tuple[int, ...] = (3, 3, 3, 3)
    """Residual blocks at each resolution, on the way down and on the way up."""
    attention: tuple[bool, ...] = (False, True, True, True)
    """Whether blocks of a resolution attend to the image and to the text; those in the middle always do."""
    embedding: int = 768
    """Width of the conditioning vector."""
    text_width: int = 768
    """Width of the text tokens in attention layers."""
    head_dim: int = 64
    """Channels of each attention head."""
    pool_heads: int = 64
    """Heads of the attention that pools the text."""
    groups: int = 32
    """Groups of the norms."""
    self_attention: bool = True
    """Whether attention layers attend to the image, besides the text."""
    rescale: float = 1.0
    """What residual sums are divided by."""
    middle_rescale: float = 1.0
    """What the residual sums in the middle are divided by."""
    activates_embedding: bool = False
    """Whether the conditioning vector goes through the activation once, before all blocks."""
    activates_in_blocks: bool = True
    """Whether the conditioning vector goes through the activation in each block."""
    dropout: float = 0.0
    """Dropout rate inside residual blocks while training, in [0, 1)."""

    @property
    def stride(self) -> int:
        return 2 ** (len(self.channels) - 1)

    inputs = frozenset({"text", "low_res_noised"})
    noise_level = "time"
    aligns_corners = True
    reads_empty_caption = True
    predicts_variance = True

    def check(self, prefix: str = "") -> None:
        """Raise a ValueError for fields that `IFUNet` cannot be built with; their names begin with `prefix`."""
        check_tuples(self, ("attention",), prefix)
        whole = dict.fromkeys(("embedding", "text_width", "head_dim", "pool_heads", "groups"), (1, MAX_CHANNELS))
        reals = {"rescale": "(0, 1000]", "middle_rescale": "(0, 1000]", "dropout": "[0, 1)"}
        checks.fields(self, whole | reals, prefix)
        attends = [*self.attention[:-1], True]
        wrong = [c for c, is_on in zip(self.channels, attends, strict=True) if is_on and c % self.head_dim]
        rule = f"be multiples of head_dim {self.head_dim} where attention is on"
        require(not wrong, f"{prefix}channels", rule, wrong)
        wrong = [c for c in self.channels if c % self.groups]
        require(not wrong, f"{prefix}channels", f"be multiples of groups {self.groups}", wrong)
        require(self.channels[0] % 2 == 0, f"{prefix}channels[0]", "be even", self.channels[0])
        is_right = self.text_width % TEXT_GROUPS == 0
        require(is_right, f"{prefix}text_width", f"be a multiple of {TEXT_GROUPS}", self.text_width)

    def build(self, *, out_channels: int, dtype: Dtype, scan: bool, remat: Remat) -> nn.Module:
        """Return an `IFUNet`; see `NetworkConfig.build`."""
        return IFUNet(**vars(self), out_channels=out_channels, dtype=dtype, scan=scan, remat=remat)


# The released networks. IF-III was never released.
_II = {"rescale": 1 / 0.7071, "middle_rescale": 1 / 0.7071, "activates_embedding": True, "activates_in_blocks": False}
RELEASED = {
    "IF-I-M": IFUNetConfig(),
    "IF-I-L": IFUNetConfig((320, 640, 960, 1280), embedding=1280, text_width=1280),
    "IF-I-XL": IFUNetConfig((704, 1408, 2112, 2816), embedding=2816, text_width=2816),
    "IF-II-M": IFUNetConfig(
        (128, 256, 512, 768, 768), (2, 2, 3, 3, 3), (False, False, False, True, True), 768, 768, **_II
    ),
    "IF-II-L": IFUNetConfig(
        (160, 320, 640, 960, 1280), (2, 2, 3, 5, 5), (False, False, False, True, True), 1280, 1280, **_II
    ),
}


class IFUNet(nn.Module):
    """ADM's U-Net as DeepFloyd IF has it: GELU, norms of the text over all tokens, and all tokens read, padding too.

    Attributes:
      channels, num_res_blocks, attention, head_dim, dropout: as in `UNet`.
      embedding, text_width, pool_heads, groups, self_attention, rescale, middle_rescale, activates_embedding,
        activates_in_blocks: see `IFUNetConfig`.
      out_channels: of the output, twice those of the images.
      dtype: of the computation; parameters are float32.
      scan, remat: how the blocks are compiled and what is kept for the backward pass; see `blocks.run_blocks`.
    """

    channels: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    embedding: int
    text_width: int
    head_dim: int = 64
    pool_heads: int = 64
    groups: int = 32
    self_attention: bool = True
    rescale: float = 1.0
    middle_rescale: float = 1.0
    activates_embedding: bool = False
    activates_in_blocks: bool = True
    dropout: float = 0.0
    out_channels: int = 6
    dtype: Dtype = jnp.float32
    scan: bool = False
    remat: Remat = "none"

    patch_size, patch_transform = 1, "space_to_depth"  # no fields

    @nn.compact
    def __call__(self, z_t: jax.Array, time: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """Return eps_hat and then the variance, [B, H, W, out_channels] in float32.

        Args:
          z_t: [B, H, W, C] with H and W multiples of 2^(levels - 1).
          time: [B] in [0, 1]; step i of the 1000 of training is (i + 1) / 1000. So is cond.aug_logsnr.
          cond: of B rows. The mask of the text is ignored, as it is by IF.
          train: turns dropout on; needs the rng "dropout".

        Raises:
          ValueError: the attributes or the inputs do not fit.
        """
        config = IFUNetConfig.of(self)
        config.check()
        check_call(z_t, time, cond, config.stride)
        style = Style(
            activation=gelu,
            embedding_activation=gelu if self.activates_in_blocks else None,
            groups=self.groups,
            text_groups=TEXT_GROUPS,
            epsilon=1e-5,
        )
        emb, text = IFConditioning(config, style, self.dtype, name="conditioning")(time, cond)

        def block(level: int, name: str, resample: str | None) -> Callable[..., Block]:
            width, is_middle = self.channels[level], name.startswith("middle")
            attends = may_attend(name) and (is_middle or self.attention[level])
            return partial(
                Block, width, resample, self.middle_rescale if is_middle else self.rescale,
                num_heads=width // self.head_dim if attends else 0, head_dim=self.head_dim,
                over_pixels=self.self_attention, dropout=self.dropout, dtype=self.dtype, style=style,
            )  # fmt: skip

        h = InputConv(self.channels[0], self.dtype, name="conv_in")(z_t, conditioning_images(cond))
        h = run_levels(self, block, h, emb, text, use_dropout=train and self.dropout > 0)
        return output_layers(self, h, None, style)


class IFConditioning(nn.Module):
    """Embeddings of the step and of the condition.

    Attributes:
      config: of the network.
      style: of its layers.
      dtype: of the computation.
    """

    config: IFUNetConfig
    style: Style
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, time: jax.Array, cond: Cond) -> tuple[jax.Array, TextCond]:
        """Return (emb, text): emb [B, embedding] of time [B], the pooled text and the noise level of the low-res image;
        text with embeddings [B, L, text_width], all of whose tokens are read."""
        config, features = self.config, self.config.embedding
        every_token = cond.text.replace(mask=jnp.ones_like(cond.text.mask))
        of_step = partial(
            StepEmbedding, features, config.channels[0], activation=self.style.activation, dtype=self.dtype
        )

        def project() -> jax.Array:
            return nn.Dense(config.text_width, dtype=self.dtype, name="text")(every_token.embeddings)

        def of_condition() -> jax.Array:
            width = cond.text.embeddings.shape[-1]
            rule = f"have a width that is a multiple of the {config.pool_heads} heads that pool it"
            require(width % config.pool_heads == 0, "cond.text", rule, width)
            pool = AttentionPool(
                features, width // config.pool_heads, self.dtype, config.pool_heads, True, self.style, name="text_pool"
            )
            emb = nn.LayerNorm(self.style.epsilon, self.dtype, name="text_pool_norm")(pool(every_token))
            if cond.aug_logsnr is not None:
                emb += of_step(name="aug_step")(cond.aug_logsnr)
            return emb

        text = every_token.replace(embeddings=cached(self, "text", project))
        emb = of_step(name="step")(time) + cached(self, "condition", of_condition)
        return self.style.activation(emb) if config.activates_embedding else emb, text
