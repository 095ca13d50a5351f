import pytest

from imagen_jax.prepare.icons import codes


@pytest.mark.parametrize(
    "text, code",
    [
        ("2764-FE0F", "2764"),
        ("00a9", "a9"),
        ("1F469-200D-1F680", "1f469-200d-1f680"),
        ("1f469 200d 2764 fe0f", "1f469-200d-2764"),
        ("fe0f", None),
        ("110000", None),
        ("tiger", None),
        ("../1f42f", None),
        ("", None),
    ],
)
def test_sequences_are_normalized(text, code):
    assert codes.normalized(text) == code


def test_variants_of_a_subject_are_one_family():
    runners = [
        "1f3c3",
        "1f3c3-200d-2640",
        "1f3c3-1f3fd-200d-2642",
        "1f3c3-200d-27a1",
        "1f3c3-200d-2640-200d-27a1",
    ]
    assert {codes.family(code) for code in runners} == {"1f3c3"}
    pilots = ["1f9d1-200d-2708", "1f468-200d-2708", "1f469-1f3ff-200d-2708"]
    assert {codes.family(code) for code in pilots} == {"1f9d1-2708"}
    assert (
        codes.family("1f42f") == "1f42f" and codes.family("2640") == "2640"
    )  # the female sign is a subject too


def test_unicode_names_are_of_single_characters():
    assert codes.unicode_name("1f42f") == "tiger face"
    assert codes.unicode_name("1f469-200d-1f680") == "" and codes.unicode_name("10ffff") == ""
    assert codes.has_tone("1f44b-1f3fd") and not codes.has_tone("1f44b")
