"""Names of modules: those of our own networks are paths, those of DeepFloyd IF are diffusers' too."""

import jax
import numpy as np

from imagen_jax.stage_dir.adapter_modules import Place, places


def test_modules_of_our_networks_are_their_paths(tiny_stages):
    found = places(tiny_stages[0].config, tiny_stages[0].params)
    assert found["down_0_block_0.conv_1"] == Place(("down_0_block_0", "conv_1", "kernel"))
    assert all(".".join((*name.split("."), "kernel")) == ".".join(place.path) for name, place in found.items())


def test_modules_of_diffusers_are_parts_of_ours(load_model):
    loaded = load_model("stage_1")
    found = places(loaded.config, jax.eval_shape(lambda: loaded.params))
    keys, values = (found[f"down_blocks.1.attentions.0.{name}"] for name in ("to_k", "to_v"))
    assert keys.path == values.path and (keys.part, values.part) == (0, 1) and keys.parts == values.parts == 2
    assert keys.path[-2:] == ("key_value", "kernel") and found[".".join(keys.path[:-1])] == Place(keys.path)
    assert found["down_blocks.1.resnets.0.conv_shortcut"].is_pointwise
    np.testing.assert_array_equal(values.columns(np.arange(12).reshape(2, 6)), [[3, 4, 5], [9, 10, 11]])
