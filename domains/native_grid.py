"""From what a model says of a sample back to the pixels of the file that it was cut from. numpy only.

Legend: K classes, S stored axes (H W or D H W), n pixels or voxels of the file along one of its axes.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from domains.placement import Placement
from domains.sample import UNKNOWN_CLASS

SLAB_VALUES = 2**24
"""Numbers that are interpolated at once: 64 MB."""
REST = 1.0
"""Stored pixels. Rounding to whole ones leaves a rest at the border of a file that is thinner than this; it takes the
class of the pixel beside it."""


def native_classes(probabilities: np.ndarray, known: np.ndarray, place: Placement,
                   into: np.ndarray | None = None) -> np.ndarray:
    """The likeliest class of every pixel of the file that a sample covers.

    Probabilities are interpolated linearly between the middles of stored pixels, then compared, so that borders are
    as smooth as the probabilities allow. Where the stored grid is the file's, each pixel keeps its own.

    Args:
        probabilities: K S floats.
        known: S bool, where the sample holds something; the rest becomes UNKNOWN_CLASS.
        into: classes of the file so far, changed in place where the sample lies. None: nothing is known yet.

    Returns:
        uint8 of the file's shape.
    """
    classes = np.full(place.shape, UNKNOWN_CLASS, np.uint8) if into is None else into
    order = np.argsort(place.axes)  # the stored axis of every axis of the file
    values = probabilities.transpose(0, *(1 + order))
    seen = known.transpose(order)
    at = [_places(n, values.shape[1 + axis], place.starts[s], place.steps[s])
          for axis, (n, s) in enumerate(zip(place.shape, order, strict=True))]
    if any(not len(places) for _, places in at):
        return classes
    rest = math.prod(len(places) for _, places in at[1:]) * len(values)
    rows = max(1, SLAB_VALUES // max(1, rest))
    (first, down), *across = at
    nearest = [_nearest(places, n) for (_, places), n in zip(at, seen.shape, strict=True)]
    for begin, stop in pairwise([*range(0, len(down), rows), len(down)]):
        slab = _between(values, down[begin:stop], 1)
        for axis, (_, places) in enumerate(across, start=2):
            slab = _between(slab, places, axis)
        best = slab.argmax(axis=0).astype(np.uint8)
        best[~seen[np.ix_(nearest[0][begin:stop], *nearest[1:])]] = UNKNOWN_CLASS
        box = (slice(first + begin, first + stop), *(slice(low, low + len(places)) for low, places in across))
        classes[box] = np.where(best == UNKNOWN_CLASS, classes[box], best)
    return classes


def _places(n: int, stored: int, start: float, step: float) -> tuple[int, np.ndarray]:
    """The first of the file's pixels along an axis that lie in a sample, and where each of them lies in stored
    pixels."""
    places = (np.arange(n) - start) / step
    low, high = min(places[0], places[-1]), max(places[0], places[-1])
    from_below = -REST if low >= -REST else -0.5 - 1e-6
    to_above = stored - 1 + (REST if high <= stored - 1 + REST else 0.5 - 1e-6)  # a border counts once, to one side
    inside = np.flatnonzero((places >= from_below) & (places <= to_above))
    return (int(inside[0]), places[inside]) if len(inside) else (0, places[:0])


def _nearest(places: np.ndarray, stored: int) -> np.ndarray:
    return np.clip(np.floor(places + 0.5).astype(np.int64), 0, stored - 1)


def _between(values: np.ndarray, places: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along one axis; beyond the first and last middle their value goes on."""
    last = values.shape[axis] - 1
    places = np.clip(places, 0, last)
    below = np.floor(places).astype(np.int64)
    share = (places - below).astype(np.float32)
    low = np.take(values, below, axis)
    if not share.any():
        return low
    share = share.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
    return np.asarray(low + share * (np.take(values, np.minimum(below + 1, last), axis) - low))
