"""Parameters held in few arrays, so that an update is some large operations instead of hundreds of small ones.

Small vectors lie one after another in one array, and so do small matrices where an optimiser treats each number by
itself; where it needs matrices, those of equal shape are stacked. A training loop holds its state so; networks,
checkpoints and samplers take trees with one array for each parameter.
"""

import math
from collections.abc import Callable, Collection
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

_MAX_BYTES = 2**20  # copying larger arrays costs more than an operation of their own
_VECTORS, _MATRICES = "vectors", "matrices"
# Name of an array -> the path and the shape of each parameter in it.
Layout = tuple[tuple[str, tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]], ...]


@flax.struct.dataclass
class Packed:
    """A nested dict of parameters, or of one number of an optimiser for each of them, in few arrays.

    Attributes:
      stacks: "RxC" -> [n, R, C]: small matrices. A kernel [..., C] counts as a matrix [R, C].
      others: "vectors" -> [N]: small vectors; "matrices" -> [1, N]: small matrices that are not stacked, still of two
        dimensions; path -> a parameter in an array of its own.
      layout: the parameters in each array.
    """

    stacks: dict[str, Any]
    others: dict[str, Any]
    layout: Layout = flax.struct.field(pytree_node=False)

    @property
    def arrays(self) -> dict[str, Any]:
        return {**self.stacks, **self.others}


def shapes(tree: Any, alone: Collection[str] = (), is_elementwise: bool = False) -> Packed:
    """Return the shapes of the nested dict `tree` when packed.

    Args:
      tree: parameters, or their shapes.
      alone: names of modules whose matrices are not packed.
      is_elementwise: small matrices of all shapes lie one after another, instead of equal ones in stacks.
    """
    groups: dict[str, list[tuple[str, ...]]] = {}
    flat = flax.traverse_util.flatten_dict(tree)
    for path, leaf in flat.items():
        is_packed = leaf.dtype == jnp.float32 and leaf.size * leaf.dtype.itemsize < _MAX_BYTES
        is_packed &= leaf.ndim < 2 or not set(alone) & set(path)
        if leaf.ndim < 2:
            name = _VECTORS
        else:
            name = _MATRICES if is_elementwise else f"{math.prod(leaf.shape[:-1])}x{leaf.shape[-1]}"
        groups.setdefault(name if is_packed else "/".join(path), []).append(path)
    stacks, others, layout = {}, {}, []
    for name, paths in groups.items():
        first = flat[paths[0]]
        if len(paths) == 1:
            name, shape = "/".join(paths[0]), first.shape
        elif name in (_VECTORS, _MATRICES):
            num = sum(flat[path].size for path in paths)
            shape = (num,) if name == _VECTORS else (1, num)
        else:
            shape = (len(paths), math.prod(first.shape[:-1]), first.shape[-1])
        struct = jax.ShapeDtypeStruct(shape, first.dtype)
        (stacks if len(shape) == 3 and len(paths) > 1 else others)[name] = struct
        layout.append((name, tuple((path, flat[path].shape) for path in paths)))
    return Packed(stacks, others, tuple(layout))


def pack(tree: Any, like: Any) -> Any:
    """Inside jit: return `tree` with what is `Packed` in the tree `like` packed."""
    join = lambda parts, array: jnp.concatenate([jnp.reshape(part, (-1,)) for part in parts]).reshape(array.shape)
    return _pack(tree, like, join)


def pack_arrays(tree: Any, like: Any) -> Any:
    """Return the arrays of `tree`, replicated ones, with what is `Packed` in the tree of shapes `like` packed."""

    def join(parts: list[jax.Array], shape: jax.ShapeDtypeStruct) -> jax.Array:
        whole = np.concatenate([np.asarray(part).reshape(-1) for part in parts]).reshape(shape.shape)
        return jax.make_array_from_callback(shape.shape, shape.sharding, lambda index: whole[index])

    return _pack(tree, like, join)


def unpack(tree: Any) -> Any:
    """Inside jit: return `tree` with an array for each parameter."""
    return _unpack(tree, _parts)


def unpack_arrays(tree: Any) -> Any:
    """Return the arrays of `tree`, replicated ones, with an array for each parameter."""

    def split(whole: jax.Array, sizes: list[tuple[int, ...]]) -> list[jax.Array]:
        place = lambda part: jax.make_array_from_callback(part.shape, whole.sharding, lambda index: part[index])
        return [place(part) for part in _parts(np.array(whole), sizes)]  # a copy: `whole` may be donated to a step

    return _unpack(tree, split)


def _parts(whole: Any, sizes: list[tuple[int, ...]]) -> list[Any]:
    if whole.ndim == 3:
        return [whole[i].reshape(size) for i, size in enumerate(sizes)]
    ends, whole = np.cumsum([math.prod(size) for size in sizes]), whole.reshape(-1)
    return [whole[end - math.prod(size) : end].reshape(size) for end, size in zip(ends, sizes, strict=True)]


def _is_packed(node: Any) -> bool:
    return isinstance(node, Packed)


def _pack(tree: Any, like: Any, join: Callable[[list[Any], Any], Any]) -> Any:
    def one(like: Any, tree: Any) -> Any:
        if not _is_packed(like):
            return tree
        flat = flax.traverse_util.flatten_dict(tree)
        made = {}
        for name, members in like.layout:
            parts = [flat[path] for path, _ in members]
            is_array = hasattr(parts[0], "shape")  # otherwise an optimiser has nothing for these parameters
            made[name] = join(parts, like.arrays[name]) if is_array and len(parts) > 1 else parts[0]
        return like.replace(
            stacks={name: made[name] for name in like.stacks}, others={name: made[name] for name in like.others}
        )

    return jax.tree.map(one, like, tree, is_leaf=_is_packed)


def _unpack(tree: Any, split: Callable[[Any, list[tuple[int, ...]]], list[Any]]) -> Any:
    def one(node: Any) -> Any:
        if not _is_packed(node):
            return node
        flat, arrays = {}, node.arrays
        for name, members in node.layout:
            whole, sizes = arrays[name], [size for _, size in members]
            is_one = len(members) == 1 or not hasattr(whole, "shape")
            parts = [whole] * len(members) if is_one else split(whole, sizes)
            flat |= {path: part for (path, _), part in zip(members, parts, strict=True)}
        return flax.traverse_util.unflatten_dict(flat)

    return jax.tree.map(one, tree, is_leaf=_is_packed)
