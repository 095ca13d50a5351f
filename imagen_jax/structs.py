"""What crosses the borders between parts, and the shape legend of the whole package.

Shapes: B batch, H W C image (NHWC), L text tokens, D text width, N heads, K head width, T steps.
Images are float32 in [-1, 1].
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class TextCond:
    """A batch of encoded captions: what every text encoder returns and every network reads.

    Attributes:
      embeddings: [B, L, D] float, last hidden states of the frozen language model.
      mask: [B, L] bool, True at tokens, False at padding; each row has at least one True.
    """

    embeddings: jax.Array
    mask: jax.Array

    def drop(self, dropped: jax.Array) -> "TextCond":
        """Replaces the captions where `dropped` [B] is True by the null caption of guidance.

        A null caption is zeros (paper section 2.2) under a mask with one valid token, so that no
        attention ever runs over nothing.
        """
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
      low_res: [B, H, W, C] the noise-augmented low-res image, already at the network's resolution;
        None in a base stage.
      aug_logsnr: [B] log-SNR of the noise that `low_res` carries; None in a base stage.
      image: [B, H, W, C'] a further image in [-1, 1] at the network's resolution, if it was trained with one.
      features: what the network made of the rest, as from `Stage.prepare`; None: it is made at every call.
    """

    text: TextCond
    low_res: jax.Array | None = None
    aug_logsnr: jax.Array | None = None
    image: jax.Array | None = None
    features: Any = None


@flax.struct.dataclass
class TrainState:
    """All that training changes. Randomness is derived from the seed and `step`, not stored."""

    step: jax.Array
    params: Any
    ema_params: Any
    opt_state: Any
