"""Pixels brought onto one grid without inventing any: resampling that knows what is unknown, padding, tiles.

Legend: H W rows and columns of the target grid; h w of a source grid; ratio = source pixels per target pixel; start =
where the target's first edge lies in source pixels, 0 when both begin on one line.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

Method = Literal["nearest", "bilinear"]

MAJORITY = 0.5
"""A resampled pixel is known when at least this share of the weight behind it is."""


def span(first: int, stop: int, ratio: float, length: int, start: float = 0.0) -> tuple[int, int]:
    """The source pixels that the target pixels first..stop need, within 0..length."""
    reach = max(1.0, ratio)
    low = int(np.floor((first + 0.5) * ratio - 0.5 + start - reach))
    high = int(np.ceil((stop - 0.5) * ratio - 0.5 + start + reach)) + 1
    low = min(max(low, 0), length - 1)
    return low, max(min(high, length), low + 1)


def centres(target: tuple[int, int], ratio: float, start: float = 0.0) -> np.ndarray:
    """Where the middles of target pixels lie, in source pixels."""
    return np.asarray((np.arange(*target) + 0.5) * ratio - 0.5 + start)


def weights(target: tuple[int, int], source: tuple[int, int], ratio: float, method: Method,
            start: float = 0.0) -> np.ndarray:
    """How much each source pixel of the span counts for each target pixel: float64, rows sum to 1."""
    middles = centres(target, ratio, start)
    places = np.arange(*source)
    if method == "nearest":
        nearest = np.clip(np.floor(middles + 0.5), source[0], source[1] - 1)
        return (places[None, :] == nearest[:, None]).astype(np.float64)
    # A triangle as wide as the coarser of the two pixels: bilinear when refining, averaging (no aliasing) when not.
    distance = np.abs(np.clip(middles, source[0], source[1] - 1)[:, None] - places[None, :])
    triangle = np.clip(1.0 - distance / max(1.0, ratio), 0.0, None)
    return triangle / triangle.sum(axis=1, keepdims=True)


def resample(values: np.ndarray, known: np.ndarray, down: np.ndarray,
             across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means over known pixels alone.

    Args:
        values: h w float64. known: h w bool. down: H h and across: W w, as `weights` makes them.

    Returns:
        H W float64 (0 where unknown) and H W bool.
    """
    share = down @ known.astype(np.float64) @ across.T
    total = down @ np.where(known, values, 0.0) @ across.T
    enough = share >= MAJORITY - 1e-9  # sums in another order must not decide
    return np.where(enough, total / np.where(enough, share, 1.0), 0.0), enough


def margin(have: int, want: int) -> int:
    """What centred padding puts before a side."""
    return max(0, want - have) // 2


def pad_to(values: np.ndarray, size: tuple[int, int], fill: int, centred: bool) -> np.ndarray:
    """... H W, grown to at least `size` with `fill`: evenly on both sides, or at the end; what is larger stays."""
    missing = [max(0, want - have) for want, have in zip(size, values.shape[-2:], strict=True)]
    if not any(missing):
        return values
    before = [margin(0, gap) if centred else 0 for gap in missing]
    edges = [(0, 0)] * (values.ndim - 2) + [(b, gap - b) for b, gap in zip(before, missing, strict=True)]
    return np.pad(values, edges, constant_values=fill)


def tiles(shape: tuple[int, int], size: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """(row start, row stop, column start, column stop) of a grid that covers `shape`; the last ones may be smaller."""
    for top in range(0, shape[0], size[0]):
        for left in range(0, shape[1], size[1]):
            yield top, min(top + size[0], shape[0]), left, min(left + size[1], shape[1])
