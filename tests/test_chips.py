import pytest

from imagen_jax import chips


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "TPU v5e"),
        ("TPU v5p", "TPU v5p"),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100"),
        ("NVIDIA H200", "NVIDIA H200"),
        ("NVIDIA GeForce RTX 4090", None),
        ("cpu", None),
    ],
)
def test_chips_by_their_kind(kind, name):
    found = chips.of_kind(kind)
    assert (found and found.name) == name
