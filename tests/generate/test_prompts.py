import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from imagen_jax import Stage, TextEncoder
from imagen_jax import config as C
from imagen_jax.generate import generate

TINY_BERT = Path(__file__).parents[1] / "goldens/tiny_bert"
PROMPTS = ["red circle", "a blue star", "two green rings", "red", "circle", "a", "heart"]


@pytest.fixture(scope="module")
def encoder():
    return TextEncoder.from_pretrained(TINY_BERT)


@pytest.fixture(scope="module")
def stages(tiny_stages, encoder):
    """The base stage alone, for the width of the small language model."""
    base = tiny_stages[0]
    text = C.TextConfig(encoder=str(TINY_BERT), width=encoder.width, length=8)
    config = dataclasses.replace(base.config, text=text)
    rng = np.random.default_rng(0)
    from imagen_jax import stage

    shapes = jax.eval_shape(lambda: stage.init(config, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32), shapes)
    return (Stage(params=params, config=config),)


@pytest.mark.slow
def test_an_image_depends_on_its_prompt_and_seed_alone(stages, encoder):
    seeds = [5, 6, 7, 8, 9, 10, 11]
    seven = [images[-1] for images in generate(stages, encoder, PROMPTS, seeds=seeds, batch_size=8)]
    assert len(seven) == 7 and seven[0].shape == (8, 8, 3)
    [(alone,)] = generate(stages, encoder, PROMPTS[2:3], seeds=[7], batch_size=8)
    np.testing.assert_allclose(alone, seven[2], atol=1e-5)
    [(shared,)] = generate(stages, encoder, PROMPTS[2:3], seeds=[7], batch_size=8, fsdp=4)  # each device holds a part
    np.testing.assert_allclose(shared, alone, atol=1e-5)
    others = ["another prompt, which is longer", "b", PROMPTS[2], "c", "d", "e", "f", "g"]
    amid = [images[-1] for images in generate(stages, encoder, others, seeds=[7] * 8, batch_size=8)]
    np.testing.assert_array_equal(amid[2], seven[2])  # same batch size and row: to the bit
    [(other,)] = generate(stages, encoder, PROMPTS[2:3], seeds=[8], batch_size=8)
    assert np.abs(other - alone).mean() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [0, 1]}, "got 7 prompts and 2 seeds"),
        ({"seeds": range(7), "images": {"image": np.zeros((2, 8, 8, 3))}}, "got 7 prompts and 2 image"),
        ({"seeds": range(7), "batch_size": 0}, "batch_size must be at least 1; got 0"),
    ],
)
def test_rows_that_do_not_match_are_refused_at_the_call(stages, encoder, options, message):
    with pytest.raises(ValueError, match=message):
        generate(stages, encoder, PROMPTS, **options)
    with pytest.raises(ValueError, match="prompts must be a list of at least one str"):
        generate(stages, encoder, [], seeds=[])


def test_another_encoder_is_refused(tiny_stages, encoder):
    with pytest.raises(ValueError, match="must be the one of training, test of width 12"):
        next(generate(tiny_stages, encoder, PROMPTS, seeds=range(7)))


@pytest.mark.slow
def test_a_long_prompt_is_cut_with_a_warning(stages, encoder):
    with pytest.warns(UserWarning, match="is cut to the limit of 8"):
        list(generate(stages, encoder, ["red circle " * 20], seeds=[0], batch_size=8))


@pytest.mark.slow
def test_an_encoder_of_ones_own_is_enough(stages, encoder):
    class Own:
        name, width = "own", encoder.width

        def encode(self, captions):
            return encoder.encode(captions)

    [(image,)] = generate(stages, Own(), ["a red circle"], seeds=[0], batch_size=8)
    [(expected,)] = generate(stages, encoder, ["a red circle"], seeds=[0], batch_size=8)
    np.testing.assert_array_equal(image, expected)
