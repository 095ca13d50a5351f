"""Data structures that are passed between the parts of the package, and the legend of shapes.

Shapes: B batch, H W C image (NHWC), L text tokens, D text width, N heads, K head width, T steps.
Images are float32 in [-1, 1].
"""

from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp

from imagen_jax import arrays
from imagen_jax.checks import Verbatim, require


@flax.struct.dataclass
class TextCond:
    """A batch of encoded captions, as every text encoder returns them and every network takes them.

    Attributes:
      embeddings: [B, L, D] float, last hidden states of the frozen language model.
      mask: [B, L] bool, True at tokens, False at padding; each row has at least one True.
    """

    embeddings: jax.Array
    mask: jax.Array

    def check(self, name: str = "text") -> "TextCond":
        """Return this after checking the kinds and shapes of its arrays; messages call it `name`.

        Raises:
          ValueError: embeddings and mask are not arrays that fit each other.
        """
        got = [getattr(value, "shape", type(value).__name__) for value in (self.embeddings, self.mask)]
        is_right = (
            arrays.is_array(self.embeddings)
            and arrays.is_array(self.mask)
            and jnp.issubdtype(self.embeddings.dtype, jnp.floating)
            and self.embeddings.ndim == 3
            and 0 not in self.embeddings.shape
            and self.mask.dtype == bool
            and self.mask.shape == self.embeddings.shape[:2]
        )
        dtypes = [f"{getattr(value, 'dtype', '')} " for value in (self.embeddings, self.mask)]
        require(
            is_right, name, "have embeddings [B, L, D] of floats and a bool mask [B, L]",
            Verbatim(f"{dtypes[0]}{got[0]} and {dtypes[1]}{got[1]}"),
        )  # fmt: skip
        return self

    def check_values(self, name: str = "text") -> None:
        """Raise a ValueError if known values are not finite or a row of the mask has no True."""
        arrays.finite(f"{name}.embeddings", self.embeddings)
        mask = arrays.known(self.mask)
        empty = [] if mask is None else [int(row) for row in (~mask.any(axis=1)).nonzero()[0]]
        require(not empty, f"{name}.mask", "have a True in every row", Verbatim(f"none in row {empty[:1]}"))

    def drop(self, dropped: jax.Array, null: "TextCond | None" = None) -> "TextCond":
        """Return the captions with the null caption of guidance where `dropped` [B] is True.

        The null caption is `null` of one row, if it is given; otherwise zeros (paper section 2.2) under a mask with one
        valid token, so that the softmax of attention always has a key.

        Raises:
          ValueError: `dropped` is no bool array of one value for each caption, or `null` no caption of this shape.
        """
        rows, *shape = self.embeddings.shape
        got = Verbatim(f"{getattr(dropped, 'dtype', '')} {getattr(dropped, 'shape', type(dropped).__name__)}".strip())
        is_right = arrays.has_values(dropped) and dropped.dtype == bool and dropped.shape == (rows,)
        require(is_right, "dropped", f"be a bool array of one value for each of {rows} captions", got)
        if null is not None:
            require(isinstance(null, TextCond), "null", "be a TextCond", null)
            alike = [(1, *shape), (rows, *shape)]
            got = Verbatim(null.check("null").embeddings.shape)
            require(null.embeddings.shape in alike, "null", f"have embeddings {list(alike[0])}", got)
        if null is not None:
            return TextCond(
                embeddings=jnp.where(dropped[:, None, None], null.embeddings, self.embeddings),
                mask=jnp.where(dropped[:, None], null.mask, self.mask),
            )
        first = jnp.arange(self.mask.shape[1]) == 0  # [L]
        return TextCond(
            embeddings=jnp.where(dropped[:, None, None], 0, self.embeddings),
            mask=jnp.where(dropped[:, None], first[None, :], self.mask),
        )


@flax.struct.dataclass
class Cond:
    """Everything that a network is conditioned on besides the noise level.

    Attributes:
      text: encoded captions.
      low_res_noised: [B, H, W, C] the low-res image, enlarged to the network's resolution and noised; None in a base
        stage.
      aug_logsnr: [B] log-SNR of the noise in `low_res_noised`; None in a base stage.
      control: [B, H, W, C'] a further image in [-1, 1] at the network's resolution, if it was trained with one.
      features: what the network computes from the rest, as from `Stage.prepare`; None: computed at every call.
    """

    text: TextCond
    low_res_noised: jax.Array | None = None
    aug_logsnr: jax.Array | None = None
    control: jax.Array | None = None
    features: Any = None

    def check(self, name: str = "cond") -> "Cond":
        """Return this after checking the kinds and shapes of its arrays; messages call it `name`.

        Raises:
          ValueError: a part is no array of B rows, or low_res_noised comes without aug_logsnr.
        """
        require(isinstance(self.text, TextCond), f"{name}.text", "be a TextCond", self.text)
        rows = self.text.check(f"{name}.text").mask.shape[0]
        rule = "be given with low_res_noised, and only then"
        has_both_or_none = (self.low_res_noised is None) == (self.aug_logsnr is None)
        require(has_both_or_none, f"{name}.aug_logsnr", rule, self.aug_logsnr)
        for part, ndim in (("low_res_noised", 4), ("control", 4), ("aug_logsnr", 1)):
            value = getattr(self, part)
            if value is not None:
                shape = arrays.array(f"{name}.{part}", value, "floats", ndim=ndim).shape
                require(shape[0] == rows, f"{name}.{part}", f"have one row for each of {rows} captions", shape[0])
        return self


@flax.struct.dataclass
class Auxiliary:
    """A network that some objectives train beside the stage's own, with the same architecture. It is never sampled.

    Attributes:
      params: nested dict of its parameters.
      opt_state: its optimiser's state.
    """

    params: Any
    opt_state: Any


@flax.struct.dataclass
class TrainState:
    """State of a training run. Randomness is derived from the seed and `step`, not stored.

    Attributes:
      step: int32 scalar, steps done.
      params: nested dict of the trainable parameters, or of adapters (LoRA).
      ema_params: their exponential moving average.
      opt_state: the optimiser's state.
      frozen: nested dict of the network's other parameters, with adapters of all, which training does not change; None:
        there are none.
      auxiliary: a second network, of objectives that train one; None: there is none.
    """

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
    frozen: Any = None
    auxiliary: Auxiliary | None = None

    def merged(self, params: Any) -> Any:
        """Return all parameters of the network: `frozen` and `params`, trainable ones or their average, in one tree."""
        if self.frozen is None:
            return params
        flat = flax.traverse_util.flatten_dict
        return flax.traverse_util.unflatten_dict(flat(self.frozen) | flat(params))
