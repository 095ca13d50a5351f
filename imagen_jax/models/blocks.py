"""Residual blocks with attention, and how a row of them is run: one by one, scanned, rematerialised."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from imagen_jax.models.attention import TextAttention
from imagen_jax.models.layers import Dtype, GroupNorm, conv3x3, downsample, upsample
from imagen_jax.models.network import Remat
from imagen_jax.sharding import constrain_activations
from imagen_jax.structs import TextCond


class Block(nn.Module):
    """Residual block of ADM ("biggan"), with attention after it if asked for.

    Re-sampling inside, FiLM in the second norm, zero-initialised output.

    Attributes:
      channels: of the output.
      resample: None, "down" or "up": both branches are averaged or repeated before the first conv.
      rescale: divide the sum by sqrt(2) and always project the shortcut, as the Efficient U-Net does.
      num_heads, head_dim: of the attention over pixels and text; no heads: no attention.
      dropout: before the last convolution.
    """

    channels: int
    resample: str | None = None
    rescale: bool = False
    num_heads: int = 0
    head_dim: int = 64
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        emb: jax.Array,
        text: TextCond,
        skip: jax.Array | None = None,
        rng: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, H, W, C], with the channels of `skip` beside its own; emb [B, E]; `rng` turns dropout on."""
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        resample = {None: lambda a: a, "down": downsample, "up": upsample}[self.resample]
        h = nn.silu(GroupNorm(self.dtype, name="norm_1")(x))
        h = checkpoint_name(conv3x3(self.channels, self.dtype, "conv_1")(resample(h)), "saved")
        h = nn.silu(GroupNorm(self.dtype, name="norm_2")(h, emb))
        h = nn.Dropout(self.dropout, deterministic=rng is None)(h, rng=rng)
        h = conv3x3(self.channels, self.dtype, "conv_2", zero_init=True)(h)
        shortcut = resample(x)
        if self.rescale or x.shape[-1] != self.channels:
            shortcut = nn.Dense(self.channels, dtype=self.dtype, name="shortcut")(shortcut)  # 1x1 convolution
        h = (shortcut + h) / math.sqrt(2) if self.rescale else shortcut + h
        if self.num_heads:
            h = checkpoint_name(h, "saved")
            h = TextAttention(self.num_heads, self.head_dim, dtype=self.dtype, name="attention")(h, text)
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
    scan: bool = False,
    remat: Remat = "none",
) -> list[jax.Array]:
    """The output of each block called in `names`; each takes the one before it, and its own skip.

    The parameters lie in `parent` under these names, and neither they nor the result depend on

      scan: whether neighbours of equal shapes are compiled once and run as a loop over their stacked parameters;
      remat: what the backward pass computes again: nothing ("none"), all but the first convolution of a block
        ("save_convs"), or everything from the block's input ("full").
    """
    dropout = [None if rng is None else jax.random.fold_in(rng, i) for i in range(len(names))]
    rows = list(zip(names, skips or [None] * len(names), dropout, strict=True))
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
    """`function`, whose backward pass computes again what `remat` says; see `run_blocks`."""
    if remat == "none":
        return function
    policies = jax.checkpoint_policies
    policy = policies.save_only_these_names("saved") if remat == "save_convs" else policies.nothing_saveable
    return jax.checkpoint(function, policy=policy)


def output_layers(
    parent: nn.Module, h: jax.Array, emb: jax.Array | None, features: int, dtype: Dtype, remat: Remat
) -> jax.Array:
    """Norm, SiLU and a convolution in `parent`, to [B, H, W, features] in float32, zero at initialisation."""

    def layers(parent: nn.Module, h: jax.Array, emb: jax.Array | None) -> jax.Array:
        h = nn.silu(GroupNorm(dtype, name="norm_out")(h, emb))
        return conv3x3(features, jnp.float32, "conv_out", zero_init=True)(h.astype(jnp.float32))

    return (layers if remat == "none" else nn.remat(layers))(parent, h, emb)


def _variables(parent: nn.Module, name: str) -> dict[str, Any]:
    return {kind: values[name] for kind, values in parent.variables.items() if name in values}


def _cast(variables: dict[str, Any], dtype: Dtype) -> dict[str, Any]:
    """Kernels in the type that they are computed in, which the stacked copy then takes no more room than."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, variables)
