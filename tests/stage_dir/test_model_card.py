"""The model card says what its authors give, and what is not stated."""

import pytest

from imagen_jax.stage_dir import model_card
from imagen_jax.stage_dir.model_card import Summary

TOML = """
title = "Tiny"
prompts = ["a red star", "a fox"]
data = "Ten drawings."
metrics = "| colour |\\n|---|\\n| 95 % |"
"""


def test_readme_has_every_part(tiny_configs, tmp_path):
    (tmp_path / "card.toml").write_text(TOML)
    card = model_card.read(tmp_path / "card.toml", "--card")
    text = model_card.markdown(card, tiny_configs, (Summary(1_500_000, 3 * 10**6, 100), Summary(10, 40, None)), "int8")
    assert text.startswith("---\nlibrary_name: imagen_jax\n") and "\n# Tiny\n" in text
    assert '--prompts "a red star" "a fox"' in text and "## Data\n\nTen drawings." in text and "| 95 % |" in text
    assert "| base | 8 | 1.50 | 3.00 | 100 | 800 |" in text  # 8 pictures in a batch
    assert "| sr16 | 8 -> 16 | 0.00 | 0.00 | not stated | not stated |" in text
    assert "## Licences\n\nNot stated." in text and "- Hardware: Not stated.\n" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("titel = 'a'", "have fields among title, summary, .*; got 'titel'"),
        ("title = 3", "title must be a str; got 3"),
        ("prompts = 'a'", "prompts must be a tuple; got 'a'"),
        ("title", "^--card must be a TOML file; got .*, which is none"),
        ("\udcff", "^--card must be a TOML file"),
    ],
)
def test_a_wrong_card_is_one_line(tmp_path, content, message):
    (tmp_path / "card.toml").write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message) as error:
        model_card.read(tmp_path / "card.toml", "--card")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="^--card must be a TOML file; got .*none.toml, which does not exist"):
        model_card.read(tmp_path / "none.toml", "--card")
