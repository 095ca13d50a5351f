"""CRC-32C against the values of RFC 3720, B.4, and against its definition."""

import numpy as np
import pytest

from imagen_jax.prepare import crc32c


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_known_values(data, expected):
    assert crc32c.checksum(data) == expected


@pytest.mark.parametrize("length", [1, 255, 256, 257, 1000, 4096])
def test_pieces_are_joined(length):
    data = np.random.default_rng(length).bytes(length)
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    assert crc32c.checksum(data) == crc ^ 0xFFFFFFFF
