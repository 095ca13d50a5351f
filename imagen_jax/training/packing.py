"""Many small parameters as few arrays, so that a train step needs few operations to update them.

A program with operations of its own for each of some hundred parameters takes minutes to compile. Small parameters are
packed before the update and unpacked after it. Large ones, which may be sharded, are left as they are: packing would
copy them.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from imagen_jax import sharding

_STACK = "matrices "  # beginning of the names of packed matrices, which the path of no parameter has
_VECTORS = "vectors "


def is_stack(name: str) -> bool:
    """Whether the array of this name in a packed tree is a stack of matrices [K, rows, columns]."""
    return name.startswith(_STACK)


def is_at_an_end(name: str) -> bool:
    """Whether a parameter, given by its path "block/conv/kernel", is of the network's first or last convolution."""
    return any(part in ("conv_in", "stem", "conv_out") for part in name.split("/"))


def path_of(path: tuple) -> str:
    """Return the path of a leaf as "block/conv/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


class Packing:
    """Packs trees with the structure and shapes of `params`, a nested dict, and unpacks them.

    A packed tree is a dict: the small vectors, end to end, as one [N]; the small kernels of hidden layers, as matrices
    (inputs times window, outputs), in one stack [K, rows, columns] for each shape; all others under their paths.
    """

    def __init__(self, params: Any):
        leaves, self._structure = jax.tree.flatten_with_path(params)
        self._keys = params.keys()
        self._shapes = [leaf.shape for _, leaf in leaves]
        self._groups: dict[str, list[int]] = {}  # name in the packed tree -> indices of leaves
        self._packed_shapes: dict[str, tuple[int, ...]] = {}
        for i, (path, leaf) in enumerate(leaves):
            name = path_of(path)
            if sharding.is_small(leaf) and leaf.ndim < 2:
                name, shape = f"{_VECTORS}{leaf.dtype}", (-1,)
                self._packed_shapes[name] = shape
            elif sharding.is_small(leaf) and not is_at_an_end(name):
                rows, columns = math.prod(leaf.shape[:-1]), leaf.shape[-1]
                name, shape = f"{_STACK}{rows}x{columns} {leaf.dtype}", (-1, rows, columns)
                self._packed_shapes[name] = shape
            self._groups.setdefault(name, []).append(i)

    def pack(self, tree: Any) -> dict[str, Any]:
        """Return `tree` packed; parameters that optax masks stay masked."""
        leaves, packed = self._structure.flatten_up_to(tree), {}
        for name, indices in self._groups.items():
            group = [leaves[i] for i in indices]
            if name not in self._packed_shapes or isinstance(group[0], optax.MaskedNode):
                packed[name] = group[0]
            else:
                flat = jnp.concatenate([leaf.reshape(-1) for leaf in group])
                packed[name] = flat.reshape(self._packed_shapes[name])
        return packed

    def unpack(self, packed: Mapping[str, Any]) -> Any:
        """Return the tree that `pack` packed."""
        leaves: list[Any] = [None] * len(self._shapes)
        for name, indices in self._groups.items():
            array, start = packed[name], 0
            is_whole = name not in self._packed_shapes or isinstance(array, optax.MaskedNode)
            flat = None if is_whole else array.reshape(-1)
            for i in indices:
                size = math.prod(self._shapes[i])
                leaves[i] = array if is_whole else flat[start : start + size].reshape(self._shapes[i])
                start += size
        return jax.tree.unflatten(self._structure, leaves)

    def pack_state(self, state: Any) -> Any:
        """Return the state of an optimiser with every tree of parameters in it packed."""
        return _convert(state, self._keys, self.pack)

    def unpack_state(self, state: Any) -> Any:
        """Return the state that `pack_state` packed."""
        return _convert(state, self._groups.keys(), self.unpack)


def _convert(state: Any, keys: Any, function: Callable[[Any], Any]) -> Any:
    is_params = lambda node: isinstance(node, dict) and node.keys() == keys
    return jax.tree.map(lambda node: function(node) if is_params(node) else node, state, is_leaf=is_params)
