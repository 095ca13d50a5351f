"""Prior preservation: batches of which every other picture is of a second data set.

A fine-tuned network forgets what its few pictures do not show. Pictures of what it drew before, with captions of their
own, prevent that (DreamBooth, Ruiz et al. 2022, arXiv 2208.12242, section 3.3).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.data.pipeline import Loader


class Mixed:
    """Batches of rows in turn of two loaders, with "weight" float32 [b], for training: like a `Loader`.

    Row 2 i of the global batch is row i of `loader`'s, row 2 i + 1 that of `prior`'s, also where each process has its
    own rows. Records of `prior` are numbered from `first`.

    Args:
      loader, prior: of batches of equal size.
      first: number of records of `loader`'s data set.
      weight: of the rows of `prior`; those of `loader` have 1.
    """

    def __init__(self, loader: Loader, prior: Loader, first: int, weight: float):
        self._loaders, self._first, self._weight = (loader, prior), first, weight

    def __next__(self) -> dict[str, np.ndarray]:
        own, prior = map(next, self._loaders)
        numbers = prior["undecodable"]
        prior["undecodable"] = np.where(numbers < 0, numbers, numbers + self._first)
        ones = np.ones(len(numbers), np.float32)
        return {name: _in_turn(own[name], prior[name]) for name in own} | {
            "weight": _in_turn(ones, self._weight * ones)
        }

    def get_state(self) -> dict[str, int]:
        """Return the position, which is that of both loaders."""
        return self._loaders[0].get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue from a position; see `Loader.set_state`."""
        for loader in self._loaders:
            loader.set_state(state)

    def records(self, index: int) -> list[int]:
        """Return the record numbers of the global batch number `index`."""
        own, prior = (loader.records(index) for loader in self._loaders)
        return [number for pair in zip(own, prior, strict=True) for number in (pair[0], pair[1] + self._first)]

    def close(self) -> None:
        """Stop threads and worker processes."""
        for loader in self._loaders:
            loader.close()


def rows(array: jax.Array) -> jax.Array:
    """Return the rows of `array` [B, ...] that are of `prior` in a batch of `Mixed`, [B / 2, ...]."""
    return array[1::2]


def with_rows(array: jax.Array, prior: jax.Array) -> jax.Array:
    """Return `array` [B, ...] with `prior` [B / 2, ...] in place of its `rows`."""
    return jnp.stack([array[::2], prior], axis=1).reshape(array.shape)


def _in_turn(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.stack([one, other], axis=1).reshape(-1, *one.shape[1:])
