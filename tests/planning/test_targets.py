"""TPU slices and GPUs by their names."""

import sys

import pytest

from imagen_jax.chips import CHIPS
from imagen_jax.planning.targets import num_devices, target


@pytest.mark.parametrize(
    ("topology", "message"),
    [
        ("v5x:2x2", "must be a TPU slice"),
        ("v5e:2x2x1", "must be a TPU slice"),
        ("v4:2x2", "must be a TPU slice"),
        ("v5e", "must be a TPU slice"),
        ("v5e:8", "must be a TPU slice"),
        ("h100:16", r"GPUs of one node \(a100:1 to a100:8"),
        ("h100:2x4", "must be a TPU slice"),
        ("h100:0", "must be a TPU slice"),
        ("v5e:0x0", "must be a TPU slice"),
        ("v4:0x2x2", "must be a TPU slice"),
        ("v5e:1000x1000", "must be a TPU slice"),
        ("v5e:3x3", "must be a TPU slice"),
        ("v4:4x4x6", "must be a TPU slice"),
        ("l4:1", "must be a TPU slice"),
    ],
)
def test_an_unknown_topology(topology, message):
    with pytest.raises(ValueError, match=message):
        num_devices(topology)


def test_every_slice_has_its_number_of_devices():
    assert num_devices("v4:4x4x12") == 192 and num_devices("v5e:1x1") == 1
    assert num_devices("v5e:16x16") == 256 and num_devices("v4:4x4x8") == 128 and num_devices("h100:8") == 8
    for name, chip in CHIPS.items():
        sizes = [num_devices(f"{name}:{shape}") for shape in chip.shapes]
        assert sizes == sorted(set(sizes))


def test_libtpu_is_asked_for_by_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match=r"--topology must have libtpu .*\[tpu\]"):
        target("v5e:2x2")
