"""Residual blocks with attention, run one by one or scanned, and rematerialised or not."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from imagen_jax.models.attention import TextAttention
from imagen_jax.models.layers import OWN_STYLE, Dtype, GroupNorm, Style, conv3x3, downsample, upsample
from imagen_jax.models.network import Remat
from imagen_jax.models.patches import unpatchify
from imagen_jax.sharding import constrain_activations
from imagen_jax.structs import TextCond


class Block(nn.Module):
    """Residual block of BigGAN as in ADM (Dhariwal & Nichol 2021), optionally followed by attention.

    Resampling is inside the block, FiLM in the second norm; the last convolution is zero at initialisation.

    Attributes:
      channels: of the output.
      resample: None, "down" or "up": both branches are averaged or repeated before the first convolution.
      rescale: what the residual sum is divided by; the Efficient U-Net has sqrt(2).
      projects_shortcut: whether the shortcut is projected also where it has the channels of the output.
      num_heads, head_dim: of the attention over pixels and text; 0 heads: no attention.
      over_pixels: whether pixels are keys of the attention too.
      dropout: rate before the last convolution.
      dtype: of the computation.
      style: of its layers.
    """

    channels: int
    resample: str | None = None
    rescale: float = 1.0
    projects_shortcut: bool = False
    num_heads: int = 0
    head_dim: int = 64
    over_pixels: bool = True
    dropout: float = 0.0
    dtype: Dtype = jnp.float32
    style: Style = OWN_STYLE

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        emb: jax.Array,
        text: TextCond,
        skip: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """Return the output of the block, [B, H', W', channels].

        Args:
          x: [B, H, W, C].
          emb: [B, E], the embedding of the noise level and the condition.
          text: for the attention.
          skip: [B, H, W, C'], concatenated to x.
          rng: turns dropout on.
        """
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        down = downsample if self.resample == "down" else lambda a: a
        up = upsample if self.resample == "up" else lambda a: a
        activation = self.style.activation
        h = activation(GroupNorm(self.dtype, self.style, name="norm_1")(x))
        h = conv3x3(self.channels, self.dtype, "conv_1", upsampled=self.resample == "up")(down(h))
        h = checkpoint_name(h, "saved")
        h = activation(GroupNorm(self.dtype, self.style, name="norm_2")(h, emb))
        h = nn.Dropout(self.dropout, deterministic=rng is None)(h, rng=rng)
        h = conv3x3(self.channels, self.dtype, "conv_2", zero_init=True)(h)
        shortcut = down(x)
        if self.projects_shortcut or x.shape[-1] != self.channels:
            shortcut = nn.Dense(self.channels, dtype=self.dtype, name="shortcut")(shortcut)  # 1x1 convolution
        h = up(shortcut) + h if self.rescale == 1 else (up(shortcut) + h) / self.rescale
        if self.num_heads:
            h = checkpoint_name(h, "saved")
            heads = (self.num_heads, self.head_dim, self.over_pixels)
            h = TextAttention(*heads, self.dtype, self.style, name="attention")(h, text)
        return h


def run_blocks(
    parent: nn.Module,
    block: Callable[..., Block],
    names: Sequence[str],
    h: jax.Array,
    emb: jax.Array,
    text: TextCond,
    *,
    skips: Sequence[jax.Array] | None = None,
    rng: jax.Array | None = None,
) -> list[jax.Array]:
    """Run blocks in sequence and return the output of each.

    Args:
      parent: the module that owns the blocks. Its attribute `scan` says whether neighbouring blocks of equal shapes are
        compiled once and run as a loop over their stacked parameters. Its `remat` says what the backward pass computes
        again: nothing ("none"), all but the first convolution of a block ("save_convs"), or everything from the block's
        input ("full").
      block: makes a block, given `name` or `parent`.
      names: of the blocks in `parent`.
      h: [B, H, W, C], the input of the first block.
      emb, text: of every block.
      skips: one for each block.
      rng: turns dropout on.
    Parameters and results are the same for every `scan` and `remat`.
    """
    dropout = [None if rng is None else jax.random.fold_in(rng, i) for i in range(len(names))]
    rows = list(zip(names, skips or [None] * len(names), dropout, strict=True))
    scan, remat = parent.scan, parent.remat
    outputs = []
    if parent.is_initializing() or parent.is_mutable_collection("features") or not (scan or remat != "none"):
        for name, *inputs in rows:
            h = constrain_activations(block(name=name)(constrain_activations(h), emb, text, *inputs))
            outputs.append(h)
        return outputs

    @partial(rematerialised, remat=remat)
    def run(variables: Any, h: jax.Array, inputs: Any) -> jax.Array:
        return constrain_activations(
            block(parent=None).apply(variables, constrain_activations(h), emb, text, *inputs)
        )

    widths = [h.shape[-1]] + [block(parent=None).channels] * (len(names) - 1)
    kinds = [(width, jnp.shape(skip)) for width, (_, skip, _) in zip(widths, rows, strict=True)]
    for _, group in itertools.groupby(range(len(names)), kinds.__getitem__):
        members = [rows[i] for i in group]
        variables = [_variables(parent, name) for name, *_ in members]
        if scan and len(members) > 1:
            stack = lambda *leaves: jnp.stack(leaves)
            variables = jax.tree.map(stack, *(_cast(each, h.dtype) for each in variables))
            inputs = jax.tree.map(stack, *(inputs for _, *inputs in members))

            def body(h: jax.Array, row: tuple) -> tuple[jax.Array, jax.Array]:
                h = run(row[0], h, row[1])
                return h, h

            h, stacked = jax.lax.scan(body, h, (variables, inputs))
            outputs += [stacked[i] for i in range(len(members))]
        else:
            for own, (_, *inputs) in zip(variables, members, strict=True):
                h = run(own, h, inputs)
                outputs.append(h)
    return outputs


def rematerialised(function: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    """Return `function` with the rematerialisation `remat` in its backward pass; see `run_blocks`."""
    if remat == "none":
        return function
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names("saved") if remat == "save_convs" else policies.nothing_saveable
    return jax.checkpoint(function, policy=policy)


def output_layers(parent: nn.Module, h: jax.Array, emb: jax.Array | None, style: Style = OWN_STYLE) -> jax.Array:
    """Return norm, activation and a convolution of h, [B, H, W, out_channels] in float32; zero at initialisation.

    Args:
      parent: the module that owns these layers, with attributes out_channels, patch_size (p), patch_transform, dtype
        (of the norm) and remat (any but "none": the backward pass computes these layers again).
      h: [B, H/p, W/p, C].
      emb: [B, E] for FiLM in the norm; None: no FiLM.
      style: of the norm and the activation.
    """

    def layers(parent: nn.Module, h: jax.Array, emb: jax.Array | None) -> jax.Array:
        h = style.activation(GroupNorm(parent.dtype, style, name="norm_out")(h, emb))
        features = parent.out_channels * parent.patch_size**2
        h = conv3x3(features, jnp.float32, "conv_out", zero_init=True)(h.astype(jnp.float32))
        return unpatchify(h, parent.patch_size, parent.patch_transform)

    return (layers if parent.remat == "none" else nn.remat(layers))(parent, h, emb)


def _variables(parent: nn.Module, name: str) -> dict[str, Any]:
    return {kind: values[name] for kind, values in parent.variables.items() if name in values}


def _cast(variables: dict[str, Any], dtype: Dtype) -> dict[str, Any]:
    """Cast kernels to the type that they are used in, so that their stacked copy takes no more memory than that."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, variables)
