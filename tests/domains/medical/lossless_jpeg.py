"""Writes lossless JPEG (ITU T.81, process 14), which no library at hand does: so that the decoder can be proved."""

from __future__ import annotations

import struct

import numpy as np

CODE_BITS = 5
"""All 17 sizes of a difference get codes of one length; the code of all ones stays unused, as the standard wants."""


def encode(pixels: np.ndarray, predictor: int, precision: int) -> bytes:
    """H W unsigned numbers as one JPEG stream.

    Args:
        predictor: 1: the left neighbour. 6: the upper neighbour plus half of the left one's difference (table H.1).
    """
    height, width = pixels.shape
    frame = struct.pack(">BHHBBBB", precision, height, width, 1, 1, 0x11, 0)
    counts = bytes(17 if length == CODE_BITS else 0 for length in range(1, 17))
    table = b"\0" + counts + bytes(range(17))
    scan = struct.pack(">BBBBBB", 1, 1, 0, predictor, 0, 0)
    return (b"\xff\xd8" + _segment(0xC3, frame) + _segment(0xC4, table) + _segment(0xDA, scan)
            + _entropy(_differences(pixels.astype(np.int64), predictor, precision)) + b"\xff\xd9")


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _differences(pixels: np.ndarray, predictor: int, precision: int) -> np.ndarray:
    """What each pixel differs by from its prediction, modulo 2^16, in -32767..32768."""
    left, up = np.roll(pixels, 1, 1), np.roll(pixels, 1, 0)
    corner = np.roll(up, 1, 1)
    guess = left if predictor == 1 else up + ((left - corner) >> 1)
    guess[0] = left[0]
    guess[1:, 0] = pixels[:-1, 0]
    guess[0, 0] = 1 << (precision - 1)
    difference = (pixels - guess) & 0xFFFF
    return np.where(difference > 32768, difference - 65536, difference)


def _entropy(differences: np.ndarray) -> bytes:
    bits = []
    for value in differences.ravel().tolist():
        size = abs(value).bit_length()
        bits.append(format(size, f"0{CODE_BITS}b"))
        if 0 < size < 16:
            bits.append(format(value if value > 0 else value + (1 << size) - 1, f"0{size}b"))
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    packed = int(text, 2).to_bytes(len(text) // 8, "big")
    return packed.replace(b"\xff", b"\xff\x00")
