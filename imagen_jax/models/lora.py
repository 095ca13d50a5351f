"""Low-rank adapters of a network's kernels: LoRA (Hu et al. 2021, arXiv 2106.09685).

A kernel [..., C], also that of a convolution, counts as a matrix W [R, C]. Its adapter of rank r is a [R, r] and
b [r, C], and the adapted kernel W + weight a b. Adapters are a nested dict like that of the parameters, which has
{"a", "b"} in each adapted module.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from imagen_jax import arrays
from imagen_jax.checks import Verbatim, choice, require, whole

Targets = Literal["attention", "all"]
Path = tuple[str, ...]  # of a parameter in a nested dict
_KERNEL = "kernel"
_ATTENTION = re.compile("attention|text")  # names of attention layers, and of projections and pooling of the text


def is_target(path: Path, targets: Targets) -> bool:
    """Whether the parameter at `path` has an adapter: "attention" are kernels of attention layers and of projections of
    the text, "all" are all kernels."""
    return path[-1] == _KERNEL and (targets == "all" or any(map(_ATTENTION.search, path[:-1])))


def init(key: jax.Array, params: Any, rank: int, targets: Targets = "attention") -> Any:
    """Return new adapters, float32: a is random, b is zero, so that they change nothing yet (section 4.1).

    Args:
      key: a PRNG key.
      params: of the network, arrays or their shapes.
      rank: r, at least 1.
      targets: which kernels have adapters; see `is_target`.

    Raises:
      ValueError: no kernel is a target, or `rank` or `targets` is none.
    """
    arrays.key("key", key)
    rank = whole("rank", rank, 1)
    choice("targets", targets, get_args(Targets))
    flat = {path: leaf for path, leaf in _flat("params", params).items() if is_target(path, targets)}
    require(bool(flat), "lora.targets", "name kernels that the network has", targets, "take 'all'")
    made = {}
    for i, (path, kernel) in enumerate(sorted(flat.items())):
        columns = kernel.shape[-1]
        rows = kernel.size // columns
        made[*path[:-1], "a"] = jax.random.normal(jax.random.fold_in(key, i), (rows, rank)) / rows**0.5
        made[*path[:-1], "b"] = jnp.zeros((rank, columns))
    return unflatten_dict(made)


def _flat(name: str, tree: Any) -> dict[Path, Any]:
    """Return the leaves of a nested dict by their paths; ValueError unless all are arrays, or shapes of some."""
    is_dict = isinstance(tree, Mapping) and bool(tree)
    flat = flatten_dict(tree) if is_dict else {}
    is_right = is_dict and all(isinstance(path, tuple) and arrays.is_array(leaf) for path, leaf in flat.items())
    require(is_right, name, "be a nested dict of arrays", tree)
    return flat


def pairs(adapters: Any) -> dict[Path, tuple[jax.Array, jax.Array]]:
    """Return (a, b) of each of the `adapters`, as from `init`, by the path of its kernel in the parameters."""
    flat = _flat("adapters", adapters)
    of_a = {path[:-1] for path in flat if path[-1] == "a"}
    are_pairs = all(path[-1] in ("a", "b") for path in flat) and len(flat) == 2 * len(of_a)
    require(are_pairs, "adapters", "have a and b in each module", adapters, "make them by lora.init")
    return {(*path[:-1], _KERNEL): (a, flat[*path[:-1], "b"]) for path, a in flat.items() if path[-1] == "a"}


def merge(params: Any, adapters: Any, weight: float | jax.Array = 1.0) -> Any:
    """Return `params` with kernel + weight a b for each adapter; all other leaves are those of `params`.

    Several adapters are merged one after the other. Products are computed in float32.

    Args:
      params: of the network.
      adapters: as from `init`, for kernels of these shapes.
      weight: 0 returns the values of `params`.

    Raises:
      ValueError: an adapter is for another kernel.
    """
    flat, found = _flat("params", params), pairs(adapters)
    arrays.real("weight", weight)
    for path, (a, b) in found.items():
        kernel, name = flat.get(path), f"the adapter of {'/'.join(path[:-1])}"
        require(kernel is not None, name, "be of a kernel of the network", Verbatim("none there"))
        rows, columns = kernel.size // kernel.shape[-1], kernel.shape[-1]
        is_right = a.shape[0] == rows and b.shape == (a.shape[1], columns)
        rule = f"have a [{rows}, r] and b [r, {columns}]"
        require(is_right, name, rule, Verbatim(f"{list(a.shape)} and {list(b.shape)}"))
    return unflatten_dict(flat | _adapted({path: flat[path] for path in found}, found, weight))


@jax.jit
def _adapted(kernels: Mapping[Path, Any], found: Mapping[Path, Any], weight: Any) -> dict[Path, jax.Array]:
    def one(kernel: jax.Array, pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        product = jnp.matmul(*pair, precision=jax.lax.Precision.HIGHEST)
        return (kernel + weight * product.reshape(kernel.shape)).astype(kernel.dtype)

    return {path: one(kernels[path], pair) for path, pair in found.items()}
