import builtins
import json

import pytest

from imagen_jax.text import deepfloyd_cleaning
from tests.conftest import GOLDENS

CLEANED = json.loads((GOLDENS / "if_captions.json").read_text())


@pytest.mark.parametrize("caption", CLEANED)
def test_captions_are_those_of_diffusers(caption):
    assert deepfloyd_cleaning.clean(caption) == CLEANED[caption]


def test_captions_of_any_length_take_little_time():
    assert len(deepfloyd_cleaning.clean("a.com" * 100_000)) < 5000


def test_the_missing_package_is_named(monkeypatch):
    def without_bs4(name, *args, **options):
        if name == "bs4":
            raise ImportError(name)
        return real(name, *args, **options)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without_bs4)
    with pytest.raises(ValueError, match="must have beautifulsoup4; got None: run `pip install beautifulsoup4`"):
        deepfloyd_cleaning.clean("a cat")
