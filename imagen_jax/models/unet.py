"""The base network: an ADM U-Net that attends to the text (paper section 2.4 and F.1)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.attention import TextAttention
from imagen_jax.models.conditioning import Conditioning, images_beside
from imagen_jax.models.layers import Dtype, GroupNorm, InputConv, ResBlock, conv3x3
from imagen_jax.structs import Cond


class UNet(nn.Module):
    """z_t, logsnr_t, cond -> out [B, H, W, out_channels], float32 and zero at initialisation.

    Each level has `num_res_blocks` residual blocks going down and one more going up; every output on
    the way down is concatenated once on the way up. Where `attention` is on, self-attention follows
    each block, and its keys and values include the text tokens.

    Attributes:
      channels, num_res_blocks, attention: one entry per level, highest resolution first.
      embedding: width of the conditioning vector and of the text tokens inside the network.
      head_dim: width of an attention head.
      dropout: in the residual blocks, when training.
      out_channels: of the image.
      dtype: of the computation; parameters are float32.
    """

    channels: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    embedding: int = 2048
    head_dim: int = 64
    dropout: float = 0.0
    out_channels: int = 3
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, z_t: jax.Array, logsnr_t: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """See the class. z_t [B, H, W, C] with H and W multiples of 2^(levels - 1); logsnr_t [B]."""

        def block(
            h: jax.Array, level: int, name: str, resample: str | None = None, attend: bool = True
        ) -> jax.Array:
            width = self.channels[level]
            h = ResBlock(width, resample, dropout=self.dropout, dtype=self.dtype, name=name)(
                h, emb, train=train
            )
            if attend and self.attention[level]:
                heads = width // self.head_dim
                h = TextAttention(heads, self.head_dim, dtype=self.dtype, name=f"{name}_attention")(h, text)
            return h

        emb, text = Conditioning(self.embedding, self.dtype, name="conditioning")(logsnr_t, cond)
        h = InputConv(self.channels[0], self.dtype, name="conv_in")(z_t, images_beside(cond))
        skips = [h]
        last = len(self.channels) - 1

        for level, num_blocks in enumerate(self.num_res_blocks):
            for i in range(num_blocks):
                h = block(h, level, f"down_{level}_block_{i}")
                skips.append(h)
            if level < last:
                h = block(h, level, f"down_{level}_downsample", "down", attend=False)
                skips.append(h)

        h = block(h, last, "middle_0")
        h = block(h, last, "middle_1", attend=False)

        for level, num_blocks in reversed(list(enumerate(self.num_res_blocks))):
            for i in range(num_blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), level, f"up_{level}_block_{i}")
            if level > 0:
                h = block(h, level, f"up_{level}_upsample", "up", attend=False)
        assert not skips

        h = nn.silu(GroupNorm(self.dtype, name="norm_out")(h))
        return conv3x3(self.out_channels, jnp.float32, "conv_out", zero_init=True)(h.astype(jnp.float32))
