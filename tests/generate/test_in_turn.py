"""One model in memory at a time: the same pictures, and no more parameters than those of one."""

import dataclasses
import gc
import weakref
from pathlib import Path

import jax
import numpy as np
import pytest

from imagen_jax import Stage, TextEncoder, stage
from imagen_jax import config as C
from imagen_jax.generate import encode_prompts, plan_prompts, run_in_turn, run_prompts
from tests.conftest import random_array

TINY_BERT = Path(__file__).parents[1] / "goldens/tiny_bert"
PROMPTS = ["red circle", "a blue star", "two green rings", "red", "circle", "a", "heart", "red", "star"]


@pytest.fixture(scope="module")
def stages(tiny_configs):
    """A cascade without attention for the small language model; its parameters are on the host."""
    networks = (
        C.UNetConfig((8,), (1,), (False,), embedding=32),
        C.EfficientUNetConfig(8, (8,), (1,), (False,), (False,), embedding=32),
    )
    text = C.TextConfig(str(TINY_BERT), TextEncoder.from_pretrained(TINY_BERT).width, 8)
    made = []
    for config, network in zip(tiny_configs, networks, strict=True):
        config = dataclasses.replace(config, text=text, network=network)
        shapes = jax.eval_shape(lambda config=config: stage.init(config, jax.random.key(0)))
        rng = np.random.default_rng(0)
        made.append(Stage(jax.tree.map(lambda s: np.asarray(random_array(rng, s.shape)), shapes), config))  # noqa: B023
    return tuple(made)


def num_bytes(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_pictures_are_equal_to_the_bit_and_one_model_is_held(stages):
    """Two batches of eight, the second one padded."""
    bare = tuple(each.replace(params=None) for each in stages)
    plan = plan_prompts(bare, PROMPTS, seeds=range(9), batch_size=8, steps=2, negative="blue")
    encoder = TextEncoder.from_pretrained(TINY_BERT)
    expected = list(run_prompts(plan, stages, encoder))
    gc.collect()
    table, before, held = weakref.ref(jax.tree.leaves(encoder.params)[0]), num_bytes(jax.live_arrays()), {}
    least = min(num_bytes(encoder.params), *(num_bytes(each.params) for each in stages))
    encoded = encode_prompts(plan, encoder)
    assert len(encoded.prompts) == 8  # one is there twice
    before -= num_bytes(encoder.params)
    del encoder

    def load(own):
        assert table() is None
        held[own.config.name] = num_bytes(jax.live_arrays()) - before
        return own.replace(params=jax.tree.map(jax.device_put, own.params))

    load_by_name = {each.config.name: lambda own=each: load(own) for each in stages}
    pictures = run_in_turn(plan, encoded, load_by_name)
    assert held == {}  # nothing is loaded before the first picture is asked for
    for by_stage, wanted in zip(pictures, expected, strict=True):
        assert [image.shape for image in by_stage] == [(8, 8, 3), (16, 16, 3)]
        jax.tree.map(np.testing.assert_array_equal, by_stage, wanted)
    assert list(held) == ["base", "sr16"] and max(held.values()) < 0.5 * least, (held, least)
