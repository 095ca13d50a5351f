"""The cascade with one program per device, by jax.pmap."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import checks, sharding


def pmap_sample_cascade(stages: Any, text: Any, keys: jax.Array, **options: Any) -> Any:
    """`sample_cascade` with one program per device: the same images, to rounding.

    Args:
      stages: as for `sample_cascade`; every device gets a whole copy, at every call unless they lie there already, as
        `replicate(stages, make_mesh())` puts them.
      text, keys, **options: as for `sample_cascade`. The batch is split over this process's devices, padded
        with copies of its last row and cropped again.

    Returns:
      what `sample_cascade` returns.
    """
    # Inside, since stages constrain their images with this file.
    from imagen_jax.sampling.cascade import check_cascade, raise_if_any_broken

    return_all = checks.boolean("return_all", options.pop("return_all", False))
    chosen = check_cascade(stages, text, keys, **options).stages  # values are not known to the program
    batch, devices = len(keys), jax.local_device_count()
    rows = -(-batch // devices)

    def split(leaf: jax.Array) -> jax.Array:
        return sharding.pad_rows(leaf, devices * rows).reshape(devices, rows, *leaf.shape[1:])

    by_image = {name: options.pop(name) for name in BY_IMAGE if options.get(name) is not None}
    negative, weak = options.pop("negative", None), options.pop("weak", None)
    if negative is not None:
        by_image["negative"] = jax.tree.map(lambda a: jnp.broadcast_to(a, (batch, *a.shape[1:])), negative)
    weak = tuple(weak) if isinstance(weak, list) else weak
    plain = lambda v: v.tolist() if hasattr(v, "tolist") else v
    hashable = {k: tuple(plain(v)) if np.ndim(v) else plain(v) for k, v in options.items()}
    program = _pmapped(tuple(sorted(hashable.items())))
    images, infos = program(stages, weak, *jax.tree.map(split, (text, keys, by_image)))
    merge = lambda leaf: leaf.reshape(devices * rows, *leaf.shape[2:])[:batch]
    images, infos = jax.tree.map(merge, (images, infos))
    raise_if_any_broken(chosen, infos)
    return images if return_all else images[-1]


# Options of `sample_cascade` with one row per image.
BY_IMAGE = ("low_res", "image", "mask", "cond_image", "z_1")


@lru_cache(maxsize=32)
def _pmapped(options: tuple[tuple[str, Any], ...]) -> Any:
    from imagen_jax.sampling.cascade import run_cascade

    def program(stages, weak, text, keys, by_image):
        return run_cascade(stages, text, keys, weak=weak, **by_image, **dict(options))

    return jax.pmap(program, axis_name="devices", in_axes=(None, None, 0, 0, 0))
