"""From the numbers of a file to reflectance, and to what is stored of it.

Legend: H W rows and columns of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from domains.sample import nearest_integer
from domains.satellite.settings import Multispectral
from domains.satellite.units import REFLECTANCE, UNKNOWN

ENDING = 65534
"""The largest stored value: one below the sentinel."""
MOST_LISTED = 16
"""Bits of a number for which all that become of it are listed once; beyond, each pixel is computed."""


@dataclass(frozen=True)
class Scaling:
    """What the numbers of a band mean."""

    scale: float
    offset: float
    nodata: float | None
    zero_is_nodata: bool


@dataclass(frozen=True)
class Band:
    """One band of one window as it is stored."""

    stored: np.ndarray
    """H W uint16."""
    total: int
    """Known pixels."""
    negative: int
    """Known pixels below zero."""
    low: float
    """Smallest known number, before it is cut to the stored range; 0 where none is known."""
    high: float
    """Largest."""


def scaling(settings: Multispectral, own: tuple[float, float] | None) -> Scaling:
    """own: scale and offset of the band, where the file's count."""
    return Scaling(*(own or (settings.scale, settings.offset)), settings.nodata, settings.zero_is_nodata)


def reflectance(raw: np.ndarray, known: np.ndarray | None, how: Scaling) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of a file to reflectance (0 where unknown) and known; nodata, zeros where they mean it, and what is not
    finite become unknown.

    Args:
        known: bool, what the file does not disown. None: it disowns nothing.
    """
    if known is not None and not known.any():  # most of a large scene's margin
        return np.zeros(raw.shape), known
    values = raw.astype(np.float64)
    known = np.isfinite(values) if known is None else known & np.isfinite(values)
    if how.nodata is not None:
        # As the file's own type would hold it: -3.4e38 is another number in 32 bits than in 64.
        known &= values != (np.float64(raw.dtype.type(how.nodata)) if raw.dtype.kind == "f" else how.nodata)
    if how.zero_is_nodata:
        known &= values != 0
    return np.where(known, values, 0.0) * how.scale + how.offset, known


def stored(values: np.ndarray, known: np.ndarray) -> Band:
    """Reflectance and known, both H W, as whole numbers."""
    numbers = nearest_integer((values if known.all() else values[known]) * REFLECTANCE)
    out = np.full(values.shape, UNKNOWN, np.uint16)
    if not numbers.size:
        return Band(out, 0, 0, 0.0, 0.0)
    low, high = float(numbers.min()), float(numbers.max())
    negative = int((numbers < 0).sum()) if low < 0 else 0
    out[known] = np.clip(numbers, 0, ENDING).astype(np.uint16).ravel()
    return Band(out, numbers.size, negative, low, high)


def stored_of_few(raw: np.ndarray, known: np.ndarray | None, how: Scaling) -> Band:
    """`stored` of `reflectance` where `is_listed`: what becomes of each number stands in a list."""
    listed = _listed(raw.dtype.str, how)
    index = raw.view(f"u{raw.dtype.itemsize}")
    if raw.dtype.kind == "i":
        index = index ^ (1 << 8 * raw.dtype.itemsize - 1)
    low, high = int(index.min()), int(index.max())
    if not listed.known[low:high + 1].all():
        known = listed.known[index] if known is None else known & listed.known[index]
    if known is None or known.all():
        seen = index
        out = index.astype(np.uint16, copy=False) if listed.same[low:high + 1].all() else listed.stored[index]
    else:
        seen, out = index[known], np.where(known, listed.stored[index], np.uint16(UNKNOWN))
        if not seen.size:
            return Band(out, 0, 0, 0.0, 0.0)
        low, high = int(seen.min()), int(seen.max())
    lowest, highest = sorted((float(listed.numbers[low]), float(listed.numbers[high])))
    negative = int(np.count_nonzero(listed.numbers[seen] < 0)) if lowest < 0 else 0
    return Band(out, seen.size, negative, lowest, highest)


def is_listed(raw: np.ndarray) -> bool:
    """Whether these are whole numbers of so few bits that all that become of them can be listed."""
    return raw.dtype.kind in "iu" and 8 * raw.dtype.itemsize <= MOST_LISTED and raw.dtype.isnative and raw.size > 0


@dataclass(frozen=True)
class _List:
    """What becomes of every number that a type can hold, from its smallest to its largest."""

    numbers: np.ndarray
    """float64, before they are cut to the stored range. They rise or fall: the ends tell the smallest and largest."""
    stored: np.ndarray
    """uint16."""
    known: np.ndarray
    """bool."""
    same: np.ndarray
    """bool: stored as its place in this list, so as it stands in the file where that has no sign."""


@lru_cache(maxsize=8)
def _listed(dtype: str, how: Scaling) -> _List:
    ends = np.iinfo(dtype)
    raw = np.arange(ends.min, ends.max + 1).astype(dtype)
    values, known = reflectance(raw, None, how)
    numbers = nearest_integer(values * REFLECTANCE)
    cut = np.where(known, np.clip(numbers, 0, ENDING).astype(np.uint16), np.uint16(UNKNOWN))
    return _List(numbers, cut, known, cut == np.arange(len(raw)))
