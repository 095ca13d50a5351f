"""The base network: the U-Net of ADM with attention to the text (paper section 2.4 and appendix F.1)."""

import dataclasses
from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax import checks
from imagen_jax.checks import require
from imagen_jax.models.architecture import MAX_CHANNELS, check_levels
from imagen_jax.models.blocks import Block, output_layers, run_blocks
from imagen_jax.models.conditioning import Conditioning, check_call, conditioning_images
from imagen_jax.models.layers import Dtype, InputConv
from imagen_jax.models.network import NETWORKS, NetworkConfig, Remat
from imagen_jax.models.patches import PatchTransform
from imagen_jax.structs import Cond, TextCond


@NETWORKS.register("unet")
@dataclasses.dataclass(frozen=True)
class UNetConfig(NetworkConfig):
    """The base network (paper F.1). Lists have one entry for each resolution, highest first."""

    channels: tuple[int, ...] = (512, 1024, 1536, 2048)
    """Channels at each resolution."""
    num_res_blocks: tuple[int, ...] = (3, 3, 3, 3)
    """Residual blocks at each resolution, on the way down and on the way up."""
    attention: tuple[bool, ...] = (False, True, True, True)
    """Whether blocks of a resolution attend to the image and to the text."""
    embedding: int = 2048
    """Width of the conditioning vector and of the text tokens in the network; ADM uses 4 times the first channels."""
    head_dim: int = 64
    """Channels of each attention head."""
    dropout: float = 0.0
    """Dropout rate inside residual blocks while training, in [0, 1)."""
    patch_size: int = 1
    """Side p of the patches of pixels that are channels inside the network, 1, 2, 4, 8 or 16: it computes at 1/p of the
    resolution."""
    patch_transform: PatchTransform = "space_to_depth"
    """How patches become channels: their pixels as they are, or the coefficients of a Haar wavelet transform."""

    @property
    def stride(self) -> int:
        return self.patch_size * 2 ** (len(self.channels) - 1)

    def check(self, prefix: str = "") -> None:
        """Raise a ValueError for fields that `UNet` cannot be built with; their names begin with `prefix`."""
        check_levels(self, ("attention",), prefix)
        checks.whole(f"{prefix}head_dim", self.head_dim, 1, MAX_CHANNELS)
        wrong = [c for c, is_on in zip(self.channels, self.attention, strict=True) if is_on and c % self.head_dim]
        rule = f"be multiples of head_dim {self.head_dim} where attention is on"
        require(not wrong, f"{prefix}channels", rule, wrong)

    def build(self, *, out_channels: int, dtype: Dtype, scan: bool, remat: Remat) -> nn.Module:
        """Return a `UNet`; see `NetworkConfig.build`."""
        return UNet(**vars(self), out_channels=out_channels, dtype=dtype, scan=scan, remat=remat)


class UNet(nn.Module):
    """U-Net with a prediction that is zero at initialisation.

    Each level has `num_res_blocks` residual blocks on the way down and one more on the way up; every output on the way
    down is concatenated once on the way up. Where `attention` is on, self-attention follows each block, and its keys
    and values include the text tokens.

    Attributes:
      channels, num_res_blocks, attention: one entry per level, highest resolution first.
      embedding: width of the conditioning vector and of the text tokens inside the network.
      head_dim: width of an attention head.
      dropout: rate in the residual blocks when training.
      patch_size, patch_transform: of the input and the output; see `patches.patchify`.
      out_channels: of the output.
      dtype: of the computation; parameters are float32.
      scan, remat: how the blocks are compiled and what is kept for the backward pass; see `blocks.run_blocks`.
    """

    channels: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    attention: tuple[bool, ...]
    embedding: int = 2048
    head_dim: int = 64
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
          z_t: [B, H, W, C] with H and W multiples of patch_size 2^(levels - 1).
          logsnr_t: [B].
          cond: of B rows.
          train: turns dropout on; needs the rng "dropout".

        Raises:
          ValueError: the attributes or the inputs do not fit.
        """
        config = UNetConfig.of(self)
        config.check()
        check_call(z_t, logsnr_t, cond, config.stride)
        emb, text = Conditioning(self.embedding, self.dtype, name="conditioning")(logsnr_t, cond)

        def block(level: int, name: str, resample: str | None) -> Callable[..., Block]:
            width = self.channels[level]
            heads = width // self.head_dim if self.attention[level] and may_attend(name) else 0
            return partial(
                Block, width, resample, num_heads=heads, head_dim=self.head_dim, dropout=self.dropout, dtype=self.dtype
            )  # fmt: skip

        conv_in = InputConv(self.channels[0], self.dtype, self.patch_size, self.patch_transform, name="conv_in")
        h = conv_in(z_t, conditioning_images(cond))
        h = run_levels(self, block, h, emb, text, use_dropout=train and self.dropout > 0)
        return output_layers(self, h, None)


def may_attend(name: str) -> bool:
    """Whether attention may follow the block `name` of `run_levels`: not after resampling, nor after the last one in
    the middle."""
    return not name.endswith("sample") and name != "middle_1"


def run_levels(
    parent: nn.Module,
    block: Callable[[int, str, str | None], Callable[..., Block]],
    h: jax.Array,
    emb: jax.Array,
    text: TextCond,
    *,
    use_dropout: bool = False,
) -> jax.Array:
    """Run all residual blocks of ADM's U-Net, down and up, and return the output of the last, [B, H, W, C].

    Args:
      parent: the module that owns the blocks; see `run_blocks`. Its `num_res_blocks` has one entry for each level.
      block: (level, name, resample) -> what makes a `Block`. The name is that of the first of equal blocks; resample is
        None, "down" or "up".
      h: [B, H, W, C], the output of the first convolution.
      emb, text: of every block.
      use_dropout: needs the rng "dropout".
    """

    def run(
        h: jax.Array,
        level: int,
        names: list[str],
        skips: list[jax.Array] | None = None,
        resample: str | None = None,
    ) -> list[jax.Array]:
        rng = parent.make_rng("dropout") if use_dropout else None
        return run_blocks(parent, block(level, names[0], resample), names, h, emb, text, skips=skips, rng=rng)

    skips = [h]
    last = len(parent.num_res_blocks) - 1

    for level, num_blocks in enumerate(parent.num_res_blocks):
        skips += run(skips[-1], level, [f"down_{level}_block_{i}" for i in range(num_blocks)])
        if level < last:
            skips += run(skips[-1], level, [f"down_{level}_downsample"], resample="down")

    (h,) = run(skips[-1], last, ["middle_0"])
    (h,) = run(h, last, ["middle_1"])

    for level, num_blocks in reversed(list(enumerate(parent.num_res_blocks))):
        names = [f"up_{level}_block_{i}" for i in range(num_blocks + 1)]
        h = run(h, level, names, skips=[skips.pop() for _ in names])[-1]
        if level > 0:
            (h,) = run(h, level, [f"up_{level}_upsample"], resample="up")
    assert not skips
    return h
