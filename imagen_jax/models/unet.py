"""The base network: an ADM U-Net that attends to the text (paper section 2.4 and F.1)."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax.models.architecture import check_unet
from imagen_jax.models.blocks import Block, Remat, output_layers, run_blocks
from imagen_jax.models.conditioning import Conditioning, check_call, conditioning_images
from imagen_jax.models.layers import Dtype, InputConv
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
      scan, remat: how the blocks are compiled and what is kept for the backward pass; see `blocks.run_blocks`.
    """

    channels: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    embedding: int = 2048
    head_dim: int = 64
    dropout: float = 0.0
    out_channels: int = 3
    dtype: Dtype = jnp.float32
    scan: bool = False
    remat: Remat = "none"

    @nn.compact
    def __call__(self, z_t: jax.Array, logsnr_t: jax.Array, cond: Cond, *, train: bool = False) -> jax.Array:
        """See the class. z_t [B, H, W, C] with H and W multiples of 2^(levels - 1); logsnr_t [B]."""
        check_unet(
            channels=self.channels, num_res_blocks=self.num_res_blocks, attention=self.attention,
            embedding=self.embedding, head_dim=self.head_dim, dropout=self.dropout,
        )  # fmt: skip
        check_call(z_t, logsnr_t, cond, 2 ** (len(self.channels) - 1))
        emb, text = Conditioning(self.embedding, self.dtype, name="conditioning")(logsnr_t, cond)
        use_dropout = train and self.dropout > 0

        def run(
            h: jax.Array,
            level: int,
            names: list[str],
            skips: list[jax.Array] | None = None,
            resample: str | None = None,
            attend: bool = True,
        ) -> list[jax.Array]:
            width = self.channels[level]
            heads = width // self.head_dim if attend and self.attention[level] else 0
            block = partial(
                Block, width, resample, num_heads=heads, head_dim=self.head_dim, dropout=self.dropout, dtype=self.dtype
            )  # fmt: skip
            rng = self.make_rng("dropout") if use_dropout else None
            return run_blocks(
                self, block, names, h, emb, text, skips=skips, rng=rng, scan=self.scan, remat=self.remat
            )

        h = InputConv(self.channels[0], self.dtype, name="conv_in")(z_t, conditioning_images(cond))
        skips = [h]
        last = len(self.channels) - 1

        for level, num_blocks in enumerate(self.num_res_blocks):
            skips += run(skips[-1], level, [f"down_{level}_block_{i}" for i in range(num_blocks)])
            if level < last:
                skips += run(skips[-1], level, [f"down_{level}_downsample"], resample="down", attend=False)

        (h,) = run(skips[-1], last, ["middle_0"])
        (h,) = run(h, last, ["middle_1"], attend=False)

        for level, num_blocks in reversed(list(enumerate(self.num_res_blocks))):
            names = [f"up_{level}_block_{i}" for i in range(num_blocks + 1)]
            h = run(h, level, names, skips=[skips.pop() for _ in names])[-1]
            if level > 0:
                (h,) = run(h, level, [f"up_{level}_upsample"], resample="up", attend=False)
        assert not skips
        return output_layers(self, h, None, self.out_channels, self.dtype, self.remat)
