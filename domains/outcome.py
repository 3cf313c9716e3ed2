"""What became of a row, by the words of a reading process, which are not believed unseen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from domains.frames import MAX_REASON
from domains.placement import Placement, told
from domains.sample import DTYPES, Fact, ManifestRow, Piece

DISHONEST = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What it comes to when a frame is taken apart that no honest child sends."""
MAX_FACT_TEXT = 100
SHORT_WORDS = 4096
"""Bytes of what is said of a piece that is remembered."""


@dataclass(frozen=True)
class Outcome:
    """What became of one row, or of one part of it: pieces, or the reason why there are none."""

    row: ManifestRow
    index: int = 0
    """Its place among the rows that were asked for."""
    more: bool = False
    """Whether another part of the same row follows."""
    pieces: list[Piece] = field(default_factory=list)
    """Empty when refused."""
    reason: str = ""
    """Why the file is quarantined; empty when it was read."""
    sha256: str = ""
    """Hash of the file's bytes; empty where there is no such file."""
    peak_bytes: int = 0
    """Most memory that the reading process has held so far."""

    @property
    def num_bytes(self) -> int:
        """Size of the pieces in memory."""
        return sum(piece.values.nbytes + (0 if piece.mask is None else piece.mask.nbytes) for piece in self.pieces)


class _Said(NamedTuple):
    """What a line says of a piece, looked at and found to be what an honest process may say."""

    dtype: np.dtype
    shape: tuple[int, ...]
    mask_dtype: np.dtype | None
    mask_shape: tuple[int, ...]
    facts: dict[str, Fact]
    suffix: str
    placement: Placement | None


def outcome_of(row: ManifestRow, index: int, header: Mapping[str, Any],
               payload: bytearray | np.ndarray) -> Outcome:
    """What a frame of a reading process says of a row. Raises one of DISHONEST on one that no honest process sends.

    Args:
        header: `pieces` are lines of `frames.describe`.
    """
    sha256, peak_bytes = str(header.get("sha256", ""))[:64], int(header.get("peak_bytes", 0))
    if "refused" in header:
        return Outcome(row, index, reason=_one_line(str(header["refused"])), sha256=sha256, peak_bytes=peak_bytes)
    pieces, offset = [], 0
    for line in header["pieces"]:
        said = _said(line) if len(line) <= SHORT_WORDS else _said.__wrapped__(line)
        values, offset = _array(payload, offset, said.dtype, said.shape)
        mask = None
        if said.mask_dtype is not None:
            mask, offset = _array(payload, offset, said.mask_dtype, said.mask_shape)
        pieces.append(Piece(values, mask, dict(said.facts), said.suffix, said.placement))
    if offset != len(payload):
        raise ValueError("arrays do not fill their frame")
    more = header["more"] is True
    return Outcome(row, index, more, pieces, "" if pieces or more or row.part else "no usable sample in it", sha256,
                   peak_bytes)


@lru_cache(maxsize=2)  # of films of one size the same is said, word for word
def _said(line: str | bytes) -> _Said:
    words = json.loads(line)
    dtype, shape = _kind(words["dtype"], words["shape"])
    mask_dtype, mask_shape = (None, ()) if words["mask_shape"] is None else _kind(
        words["mask_dtype"], words["mask_shape"])
    return _Said(dtype, shape, mask_dtype, mask_shape, _facts(words["facts"]), _code(words["suffix"]),
                 told(words["placement"]))


def _kind(dtype: str, shape: Sequence[int]) -> tuple[np.dtype, tuple[int, ...]]:
    if dtype not in DTYPES or not 1 <= len(shape) <= 4 or min(shape) < 1:
        raise ValueError("an array of a kind that is not stored")
    return np.dtype(dtype), tuple(map(int, shape))


def _array(payload: bytearray | np.ndarray, offset: int, dtype: np.dtype,
           shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    count = math.prod(shape)
    end = offset + count * dtype.itemsize
    if end > len(payload):
        raise ValueError("an array larger than its frame")
    return np.frombuffer(payload, dtype, count, offset).reshape(shape), end


def _facts(raw: Mapping[str, Any]) -> dict[str, Fact]:
    for name, fact in raw.items():
        for value in fact if isinstance(fact, list) else [fact]:
            if not isinstance(value, str | int | float):
                raise ValueError("a fact that is neither number nor text")
            _code(name if isinstance(value, float) else f"{name}{value}")
    return dict(raw)


def _code(text: str) -> str:
    if len(text) > MAX_FACT_TEXT or not text.isprintable():
        raise ValueError("a text that is no short code")
    return text


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_REASON]


