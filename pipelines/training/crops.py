"""Crops that hold something to be found: in a large volume, one that lies anywhere seldom does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def around_a_class(mask: np.ndarray, numbers: np.ndarray, size: Sequence[int], draws: np.ndarray,
                   which: np.ndarray) -> np.ndarray:
    """Draws that place a crop so that it holds a pixel of a class; where the mask has none, the draws as they are.

    A class is drawn first, then a pixel of it, so that small ones are seen as often as large ones.

    Args:
        mask: H W or D H W, uint8.
        numbers: what stands in it for the classes that it has pixels of.
        size: of the crop.
        draws: uniforms in [0, 1) that place a crop, the last ones for the axes of the mask; they say where in the crop
            the pixel lies.
        which: two uniforms in [0, 1): which class, which of its pixels.
    """
    if not len(numbers):
        return draws
    pixels = np.flatnonzero(mask == numbers[int(which[0] * len(numbers))])
    place = np.unravel_index(pixels[int(which[1] * len(pixels))], mask.shape)
    placed = draws.copy()
    first = len(draws) - mask.ndim
    for axis, (at, stored, wanted) in enumerate(zip(place, mask.shape, size, strict=True)):
        spare = max(stored - wanted, 0)
        start = min(max(int(at) - int(draws[first + axis] * wanted), 0), spare)
        placed[first + axis] = (start + 0.5) / (spare + 1)
    return placed
