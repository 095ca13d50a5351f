"""The super-resolution network: Efficient U-Net (paper appendix B and F.2, figures A.27 to A.30)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.attention import TextAttention
from imagen_jax.models.conditioning import Conditioning, images_beside
from imagen_jax.models.layers import Dtype, GroupNorm, InputConv, ResBlock, conv3x3, upsample
from imagen_jax.structs import Cond


class EfficientUNet(nn.Module):
    """z_t, logsnr_t, cond -> out [B, H, W, out_channels], float32 and zero at initialisation.

    Most blocks sit at low resolution: a level first halves the resolution, then runs its blocks, and on
    the way up runs its blocks before it doubles the resolution. Each residual block keeps a skip for
    its counterpart on the way up; residual sums are divided by sqrt(2). The stem's output joins
    before the output layer, since nothing else carries z_t at full resolution.

    Attributes:
      stem_channels: of the convolution at full resolution.
      channels, num_res_blocks: one entry per level, highest resolution first.
      self_attention: attention over pixels and text after a level's blocks.
      cross_attention: attention over the text alone after a level's blocks.
      embedding: width of the conditioning vector and of the text tokens inside the network.
      num_heads: of both; their inner width is twice the channels (figure A.28).
      dropout, out_channels, dtype: as in `UNet`.
    """

    channels: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    self_attention: tuple[bool, ...]
    cross_attention: tuple[bool, ...]
    stem_channels: int = 128
    embedding: int = 512
    num_heads: int = 8
    dropout: float = 0.0
    out_channels: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, z_t: jax.Array, logsnr_t: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """See the class. z_t [B, H, W, C] with H and W multiples of 2^levels; logsnr_t [B]."""

        def block(h: jax.Array, level: int, name: str) -> jax.Array:
            width = self.channels[level]
            return ResBlock(width, rescale=True, dropout=self.dropout, dtype=self.dtype, name=name)(
                h, emb, train=train
            )

        def attend(h: jax.Array, level: int, name: str) -> jax.Array:
            over_pixels = self.self_attention[level]
            if not over_pixels and not self.cross_attention[level]:
                return h
            head_dim = 2 * self.channels[level] // self.num_heads
            return TextAttention(self.num_heads, head_dim, over_pixels, self.dtype, name=name)(h, text)

        emb, text = Conditioning(self.embedding, self.dtype, name="conditioning")(logsnr_t, cond)
        stem = InputConv(self.stem_channels, self.dtype, name="stem")(z_t, images_beside(cond))
        h, skips = stem, []

        for level, num_blocks in enumerate(self.num_res_blocks):  # DBlocks
            h = conv3x3(self.channels[level], self.dtype, f"down_{level}_downsample", stride=2)(h)
            for i in range(num_blocks):
                h = block(h, level, f"down_{level}_block_{i}")
                skips.append(h)
            h = attend(h, level, f"down_{level}_attention")

        for level, num_blocks in reversed(list(enumerate(self.num_res_blocks))):  # UBlocks
            for i in range(num_blocks):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), level, f"up_{level}_block_{i}")
            h = attend(h, level, f"up_{level}_attention")
            width = self.channels[level - 1] if level > 0 else self.stem_channels
            h = conv3x3(width, self.dtype, f"up_{level}_upsample")(upsample(h))
        assert not skips

        h = nn.silu(GroupNorm(self.dtype, name="norm_out")(jnp.concatenate([h, stem], axis=-1), emb))
        return conv3x3(self.out_channels, jnp.float32, "conv_out", zero_init=True)(h.astype(jnp.float32))
