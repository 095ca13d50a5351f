"""An optimiser's work on many small matrices, done on one stack for each shape.

Muon orthogonalises every matrix by a loop of matrix products, and some hundred loops take long to compile. Matrices of
one shape go through one loop together.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from imagen_jax import sharding

_STACK = "matrices "  # beginning of the names of stacks, which no parameter's path has


def stacked(
    optimizer: optax.GradientTransformation, is_matrix: Callable[[str, Any], bool]
) -> optax.GradientTransformation:
    """Return `optimizer` with the same state, which updates small matrices of one shape as a stack.

    Args:
      optimizer: of a nested dict of parameters, or of a dict with stacks [K, rows, columns] under names for which
        `is_stack` holds, and all other parameters under their paths.
      is_matrix: whether a parameter, given with its path, is a kernel of hidden layers.
    """

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        stacking = Stacking(grads, is_matrix)
        given = None if params is None else stacking.stack(params)
        updates, state = optimizer.update(stacking.stack(grads), stacking.stack_state(state), given)
        return stacking.unstack(updates), stacking.unstack_state(state)

    return optax.GradientTransformation(optimizer.init, update)


def is_stack(path: str) -> bool:
    """Whether a path names a stack of matrices."""
    return path.startswith(_STACK)


def path_of(path: tuple) -> str:
    """Return the path of a leaf as "block/conv/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


class Stacking:
    """Stacks the small matrices of trees with the structure and shapes of `params`, and takes them apart again.

    A kernel is a matrix (window times inputs, outputs). Large ones, which may be sharded, are left as they are.
    """

    def __init__(self, params: Any, is_matrix: Callable[[str, Any], bool]):
        leaves, self._structure = jax.tree.flatten_with_path(params)
        self._keys = params.keys()
        self._shapes = [leaf.shape for _, leaf in leaves]
        self._groups: dict[str, list[int]] = {}  # name in the stacked tree -> indices of leaves
        for i, (path, leaf) in enumerate(leaves):
            name = path_of(path)
            if is_matrix(name, leaf) and sharding.is_small(leaf):
                name = f"{_STACK}{math.prod(leaf.shape[:-1])}x{leaf.shape[-1]} {leaf.dtype}"
            self._groups.setdefault(name, []).append(i)

    def stack(self, tree: Any) -> dict[str, Any]:
        """Return a dict of stacks, and of all other leaves by their paths; leaves that optax masks stay masked."""
        leaves, found = self._structure.flatten_up_to(tree), {}
        for name, indices in self._groups.items():
            group = [leaves[i] for i in indices]
            is_whole = not is_stack(name) or isinstance(group[0], optax.MaskedNode)
            found[name] = group[0] if is_whole else jnp.stack([leaf.reshape(-1, leaf.shape[-1]) for leaf in group])
        return found

    def unstack(self, found: Mapping[str, Any]) -> Any:
        """Return the tree that `stack` stacked."""
        leaves: list[Any] = [None] * len(self._shapes)
        for name, indices in self._groups.items():
            is_whole = not is_stack(name) or isinstance(found[name], optax.MaskedNode)
            for k, i in enumerate(indices):
                leaves[i] = found[name] if is_whole else found[name][k].reshape(self._shapes[i])
        return jax.tree.unflatten(self._structure, leaves)

    def stack_state(self, state: Any) -> Any:
        """Return the state of an optimiser with every tree of parameters in it stacked."""
        return _convert(state, self._keys, self.stack)

    def unstack_state(self, state: Any) -> Any:
        """Return the state that `stack_state` stacked."""
        return _convert(state, self._groups.keys(), self.unstack)


def _convert(state: Any, keys: Any, function: Callable[[Any], Any]) -> Any:
    is_params = lambda node: isinstance(node, dict) and node.keys() == keys
    return jax.tree.map(lambda node: function(node) if is_params(node) else node, state, is_leaf=is_params)
