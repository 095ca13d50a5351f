import functools

import jax
import pytest
from flax.traverse_util import flatten_dict

from tests.models.conftest import MODULES, init, inputs


@pytest.mark.slow
def test_efficient_unet_works_at_low_resolution():
    """Down-sampling comes first: no residual block ever runs at full resolution."""
    network, args = MODULES["efficient"], inputs("efficient")
    _, state = jax.jit(functools.partial(network.apply, capture_intermediates=True))(
        init(network, *args), *args
    )
    sizes = {
        key[0]: value[0].shape[1]
        for key, value in flatten_dict(state["intermediates"]).items()
        if "block" in key[0] and len(key) == 2
    }
    assert sizes and max(sizes.values()) == args[0].shape[1] // 2
    assert sizes["down_0_block_0"] == sizes["up_0_block_0"] == 4 and sizes["down_1_block_1"] == 2
