"""Options of methods have names of their own."""

import dataclasses

import pytest

from imagen_jax import config as C
from imagen_jax.diffusion import samplers
from tests.methods import Eager


def test_options_of_two_kinds_have_names_of_their_own(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Clash(Eager):
        percentile: float = 0.5

    monkeypatch.setattr(samplers.SAMPLERS, "_entries", dict(samplers.SAMPLERS) | {"clash": Clash})
    with pytest.raises(ValueError, match="option percentile of mine|option percentile of dynamic must have a name"):
        C.flat_options()
