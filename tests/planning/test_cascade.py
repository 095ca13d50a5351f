"""Memory of a whole cascade: its parts, all loaded or one at a time."""

import dataclasses

import jax
import pytest

from imagen_jax import TextEncoder
from imagen_jax import config as C
from imagen_jax.planning import cascade
from imagen_jax.planning.cascade import Part
from imagen_jax.planning.estimate import estimate
from imagen_jax.text.known import KNOWN
from tests.conftest import TINY_BERT
from tests.deepfloyd_models import write_pipeline


def test_peaks_of_parts():
    """And what they are at most, where the compiler gathers parameters before it is asked to."""
    found = [Part("text encoder", 8, 1), Part("base", 4, 2, ahead_bytes=7), Part("sr16", 2, 5)]
    assert cascade.together(found) == (14 + 5, 14 + 9) and cascade.one_at_a_time(found) == (9, 13)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_parameters_of_an_encoder_are_those_that_are_loaded(dtype):
    params = TextEncoder.from_pretrained(TINY_BERT, dtype).params
    planned = cascade.text_encoder(C.TextConfig(str(TINY_BERT), 32, 8, dtype))
    assert planned.params_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert planned.working_bytes > 0


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("int8", 1)])
def test_known_models_need_no_files(dtype, size):
    planned = cascade.text_encoder(C.TextConfig("t5-v1_1-small", 512, 8, dtype))
    assert planned.params_bytes == pytest.approx(size * KNOWN["google/t5-v1_1-small"].parameters, rel=0.01)
    with pytest.raises(ValueError, match="^--text.encoder must be a directory, or one of .*; got 'nobody/model'"):
        cascade.text_encoder(C.TextConfig("nobody/model", 512, 8, dtype))


@pytest.mark.slow
def test_parts_are_the_encoder_and_the_plans_of_the_stages(tiny_configs):
    text = C.TextConfig(str(TINY_BERT), tiny_configs[0].text.width, 5)
    configs = [dataclasses.replace(config, text=text) for config in tiny_configs]
    found = cascade.parts(configs, 8, "bfloat16")
    assert [part.name for part in found] == ["text encoder", "base", "sr16"]
    for part, config in zip(found[1:], configs, strict=True):
        assert part.most_bytes == part.peak_bytes == estimate(config, "sample", 8, "bfloat16").peak_bytes
    shared = [dataclasses.replace(config, run=dataclasses.replace(config.run, fsdp=4)) for config in configs]
    for part in cascade.parts(shared, 8, "bfloat16")[1:]:
        assert 0 < part.ahead_bytes == part.most_bytes - part.peak_bytes


def test_an_encoder_may_lie_in_a_pipeline(goldens, tmp_path):
    directory = write_pipeline(tmp_path / "one", goldens, "stage_1")
    own = C.TextConfig(str(directory / "text_encoder"), 32, 8)
    assert cascade.text_encoder(C.TextConfig(str(directory), 32, 8)) == cascade.text_encoder(own)
