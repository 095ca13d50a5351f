"""CRC-32C (Castagnoli) in numpy: the checksum of TFRecord files.

A CRC is linear, so the pieces of a long input are taken side by side, and each result is then moved on
over the zeros that stand for the pieces behind it. See R. Williams, A Painless Guide to CRC Error
Detection Algorithms, 1993, for the table of bytes.
"""

from __future__ import annotations

import functools

import numpy as np

_PIECE = 256  # bytes


def masked(data: bytes) -> int:
    """The CRC-32C of some bytes as TFRecord files store it: rotated by 15 bits, and a constant added."""
    crc = checksum(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def checksum(data: bytes) -> int:
    """The CRC-32C of some bytes."""
    table = _table()
    num = len(data) // _PIECE
    pieces = np.frombuffer(data, np.uint8, num * _PIECE).reshape(num, _PIECE).T
    states = np.zeros(num, np.uint32)
    for column in pieces if num else ():
        states = _step(table, states, column)
    crc = 0xFFFFFFFF
    for state in states.tolist():
        crc = _moved(crc) ^ state
    steps = table.tolist() if len(data) > num * _PIECE else []
    for byte in data[num * _PIECE :]:
        crc = steps[(crc ^ byte) & 255] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _step(table: np.ndarray, states: np.ndarray, column: np.ndarray | int) -> np.ndarray:
    return table[(states ^ column) & 255] ^ (states >> 8)


def _moved(crc: int) -> int:
    """A state after _PIECE zeros."""
    one, two, three, four = _moves()
    return one[crc & 255] ^ two[(crc >> 8) & 255] ^ three[(crc >> 16) & 255] ^ four[crc >> 24]


@functools.cache
def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    return table


@functools.cache
def _moves() -> list[list[int]]:
    """For each byte of a state and each of its values, what it becomes after _PIECE zeros."""
    states = (np.arange(256, dtype=np.uint32)[None] << (8 * np.arange(4, dtype=np.uint32)[:, None])).ravel()
    for _ in range(_PIECE):
        states = _step(_table(), states, 0)
    return states.reshape(4, 256).tolist()
