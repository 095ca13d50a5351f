"""Networks by name: the configuration of each one checks itself and builds the Linen module."""

import dataclasses
from typing import Any, Literal, Self

import flax.linen as nn

from imagen_jax import checks
from imagen_jax.models.layers import Dtype
from imagen_jax.registry import Registry

NETWORKS = Registry("network")

Remat = Literal["none", "save_convs", "full"]


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """Base class of the configurations of networks: frozen dataclasses of typed fields, registered in `NETWORKS`.

    The module that `build` returns is called as `module(z_t, noise_level, cond, train=False)` with z_t [B, H, W, C]
    and noise_level [B] in float32 and a `Cond` of B rows. It returns [B, H, W, out_channels] in float32.

    Class attributes:
      stride: H and W of its images are multiples of it.
      inputs: the parts of `Cond` that it reads, of "text", "low_res_noised" and "control".
      needs_low_res: whether it is for super-resolution stages only.
      noise_level: what it is given as such: "logsnr", the log-SNR of z_t, from which the U-Nets compute the time of a
        cosine schedule; or "time", t in [0, 1] of the schedule of training, from which a network with T discrete steps
        computes the step, T t - 1. `Cond.aug_logsnr` is given to it in the same way.
      aligns_corners: whether a low-res image is enlarged to `Cond.low_res_noised` by `resize.bilinear_corners`, rather
        than by `resize.bilinear`.
      reads_empty_caption: whether the null caption of guidance is what the text encoder returns for the empty string;
        otherwise it is zeros, see `TextCond.drop`.
      predicts_variance: whether it has twice as many output channels as the image: the prediction, then in [-1, 1]
        where the log-variance lies between its bounds (Nichol & Dhariwal 2021, section 3.1).
    """

    # Without types, since fields of the dataclass have types.
    stride = 1
    inputs = frozenset({"text", "low_res_noised", "control"})
    needs_low_res = False
    noise_level = "logsnr"
    aligns_corners = False
    reads_empty_caption = False
    predicts_variance = False

    def check(self, prefix: str = "") -> None:
        """Check the fields; by default their types alone.

        Args:
          prefix: of the fields' names in messages, such as "network.".

        Raises:
          ValueError: the network cannot be built.
        """
        checks.fields(self, {}, prefix)

    def build(self, *, out_channels: int, dtype: Dtype, scan: bool, remat: Remat) -> nn.Module:
        """Return the network.

        Args:
          out_channels: of its output.
          dtype: of the computation; parameters are float32.
          scan, remat: how blocks are compiled and what is kept for the backward pass; see `blocks.run_blocks`.
        """
        raise NotImplementedError

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        """Return the configuration whose fields are the attributes of `module`."""
        names: list[Any] = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(module, name) for name in names})
