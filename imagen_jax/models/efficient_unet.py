"""The super-resolution network: the Efficient U-Net (paper appendices B and F.2, figures A.27 to A.30)."""

import dataclasses
import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax import checks
from imagen_jax.checks import require
from imagen_jax.models.architecture import MAX_CHANNELS, check_levels
from imagen_jax.models.attention import TextAttention
from imagen_jax.models.blocks import Block, output_layers, run_blocks
from imagen_jax.models.conditioning import Conditioning, check_call, conditioning_images
from imagen_jax.models.layers import Dtype, InputConv, conv3x3
from imagen_jax.models.network import NETWORKS, NetworkConfig, Remat
from imagen_jax.models.patches import PatchTransform
from imagen_jax.structs import Cond


@NETWORKS.register("efficient_unet")
@dataclasses.dataclass(frozen=True)
class EfficientUNetConfig(NetworkConfig):
    """The super-resolution network (paper F.2). Lists have one entry for each level; every level halves the resolution
    before its blocks."""

    stem_channels: int = 128
    """Channels of the first convolution, at full resolution (that of the patches)."""
    channels: tuple[int, ...] = (128, 256, 512, 1024)
    """Channels at each level."""
    num_res_blocks: tuple[int, ...] = (2, 4, 8, 8)
    """Residual blocks at each level, on the way down and on the way up."""
    self_attention: tuple[bool, ...] = (False, False, False, True)
    """Whether a level attends to the image and to the text after its blocks."""
    cross_attention: tuple[bool, ...] = (False, False, False, False)
    """Whether a level attends to the text alone after its blocks."""
    embedding: int = 512
    """Width of the conditioning vector and of the text tokens inside the network."""
    num_heads: int = 8
    """Heads of each attention layer."""
    dropout: float = 0.0
    """Dropout rate inside residual blocks while training, in [0, 1)."""
    patch_size: int = 1
    """Side p of the patches of pixels that are channels inside the network, 1, 2, 4, 8 or 16: it computes at 1/p of the
    resolution."""
    patch_transform: PatchTransform = "space_to_depth"
    """How patches become channels: their pixels as they are, or the coefficients of a Haar wavelet transform."""

    @property
    def stride(self) -> int:
        return self.patch_size * 2 ** len(self.channels)

    needs_low_res = True

    def check(self, prefix: str = "") -> None:
        """Raise a ValueError for fields that `EfficientUNet` cannot be built with; their names begin with `prefix`."""
        checks.whole(f"{prefix}stem_channels", self.stem_channels, 1, MAX_CHANNELS)
        check_levels(self, ("self_attention", "cross_attention"), prefix)
        checks.whole(f"{prefix}num_heads", self.num_heads, 1, MAX_CHANNELS)
        wrong = [c for c in self.channels if c % self.num_heads]
        require(not wrong, f"{prefix}channels", f"be multiples of num_heads {self.num_heads}", wrong)
        is_twice = any(s and c for s, c in zip(self.self_attention, self.cross_attention, strict=True))
        rule = "be off where self_attention is on, which attends to the text already"
        require(not is_twice, f"{prefix}cross_attention", rule, self.cross_attention)

    def build(self, *, out_channels: int, dtype: Dtype, scan: bool, remat: Remat) -> nn.Module:
        """Return an `EfficientUNet`; see `NetworkConfig.build`."""
        return EfficientUNet(**vars(self), out_channels=out_channels, dtype=dtype, scan=scan, remat=remat)


class EfficientUNet(nn.Module):
    """U-Net with most blocks at low resolution and a prediction that is zero at initialisation.

    A level halves the resolution before its blocks on the way down and doubles it after its blocks on the way up. The
    output of each residual block is concatenated to the input of its counterpart on the way up; residual sums are
    divided by sqrt(2). The stem's output is concatenated before the output layer, since nothing else carries z_t at
    full resolution. With patches, "full" is their resolution.

    Attributes:
      stem_channels: of the convolution at full resolution.
      channels, num_res_blocks: one entry per level, highest resolution first.
      self_attention: attention over pixels and text after a level's blocks.
      cross_attention: attention over the text alone after a level's blocks.
      embedding: width of the conditioning vector and of the text tokens inside the network.
      num_heads: of both; their inner width is twice the channels (figure A.28).
      dropout, patch_size, patch_transform, out_channels, dtype, scan, remat: as in `UNet`.
    """

    channels: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    self_attention: tuple[bool, ...]
    cross_attention: tuple[bool, ...]
    stem_channels: int = 128
    embedding: int = 512
    num_heads: int = 8
    dropout: float = 0.0
    patch_size: int = 1
    patch_transform: PatchTransform = "space_to_depth"
    out_channels: int = 3
    dtype: Dtype = jnp.float32
    scan: bool = False
    remat: Remat = "none"

    @nn.compact
    def __call__(self, z_t: jax.Array, logsnr_t: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """Return the prediction [B, H, W, out_channels] in float32.

        Args:
          z_t: [B, H, W, C] with H and W multiples of patch_size 2^levels.
          logsnr_t: [B].
          cond: of B rows.
          train: turns dropout on; needs the rng "dropout".

        Raises:
          ValueError: the attributes or the inputs do not fit.
        """
        config = EfficientUNetConfig.of(self)
        config.check()
        check_call(z_t, logsnr_t, cond, config.stride)
        emb, text = Conditioning(self.embedding, self.dtype, name="conditioning")(logsnr_t, cond)
        use_dropout = train and self.dropout > 0

        def run(h: jax.Array, level: int, way: str, skips: list[jax.Array] | None = None) -> list[jax.Array]:
            names = [f"{way}_{level}_block_{i}" for i in range(self.num_res_blocks[level])]
            block = partial(
                Block, self.channels[level], rescale=math.sqrt(2), projects_shortcut=True, dropout=self.dropout,
                dtype=self.dtype,
            )  # fmt: skip
            rng = self.make_rng("dropout") if use_dropout else None
            return run_blocks(self, block, names, h, emb, text, skips=skips, rng=rng)

        def attend(h: jax.Array, level: int, name: str) -> jax.Array:
            over_pixels = self.self_attention[level]
            if not over_pixels and not self.cross_attention[level]:
                return h
            head_dim = 2 * self.channels[level] // self.num_heads
            return TextAttention(self.num_heads, head_dim, over_pixels, self.dtype, name=name)(h, text)

        conv_in = InputConv(self.stem_channels, self.dtype, self.patch_size, self.patch_transform, name="stem")
        stem = conv_in(z_t, conditioning_images(cond))
        h, skips = stem, []

        for level, width in enumerate(self.channels):  # DBlocks
            h = conv3x3(width, self.dtype, f"down_{level}_downsample", stride=2)(h)
            skips += run(h, level, "down")
            h = attend(skips[-1], level, f"down_{level}_attention")

        for level in reversed(range(len(self.channels))):  # UBlocks
            h = run(h, level, "up", [skips.pop() for _ in range(self.num_res_blocks[level])])[-1]
            h = attend(h, level, f"up_{level}_attention")
            width = self.channels[level - 1] if level > 0 else self.stem_channels
            h = conv3x3(width, self.dtype, f"up_{level}_upsample", upsampled=True)(h)
        assert not skips
        h = jnp.concatenate([h, stem], axis=-1)
        return output_layers(self, h, emb)
