"""From the numbers of a radiograph to grey levels on the training grid. numpy only; the files are read in ingest.py."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np

from domains.medical import resample
from domains.placement import Placement
from domains.sample import UNKNOWN_CLASS, nearest_integer

Fit = Literal["letterbox", "crop"]

UNKNOWN_GREY = 0
"""Stored grey of a letterbox margin. Only with fit: letterbox; its films then use 1..255."""


COLOUR_TOLERANCE = 12
"""Levels of 255 by which the channels of a grey picture may differ: JPEG rounds colour and brightness apart."""
MOST_COUNTED = 2**16
"""Different whole numbers that are counted rather than ordered."""
COUNTED_AT_ONCE = 2**18
"""Values, which take a dozen bytes each meanwhile."""
LEAST_SHOWN = 0.01
"""Share of the exposed pixels that must lie in the window of a header for it to be taken."""
MOST_UNEQUAL = 1.02
"""Ratio of a pixel's two sides up to which they are called equal."""
MOST_COLOURED = 0.001
"""Share of a film's pixels that may be coloured: a mark that somebody drew."""


def coloured(rgb: np.ndarray) -> float:
    """Share of the pixels (H W 3 uint8) whose channels differ."""
    red, green, blue = (rgb[..., i] for i in range(3))
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    return float((spread > COLOUR_TOLERANCE).mean())


def percentile_window(values: np.ndarray, valid: np.ndarray, percentiles: tuple[float, float]) -> tuple[float, float]:
    """The two values between which the grey scale runs, from the pixels that the detector saw."""
    seen = values.ravel() if valid.all() else values[valid]
    low, high = _by_counting(seen, percentiles) or np.percentile(seen, percentiles)
    return float(low), float(high)


def _by_counting(values: np.ndarray, percentiles: tuple[float, float]) -> list[float] | None:
    """What numpy's percentiles are, of whole numbers that span no more than 16 bits, as a detector's do: counting them
    takes half as long as ordering them. None for other values."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if not (high - low < MOST_COUNTED and abs(low) + abs(high) < 2**23):  # also for what is not finite
        return None
    counts = np.zeros(int(high - low) + 1, np.int64)
    for begin in range(0, len(values), COUNTED_AT_ONCE):
        some = values[begin:begin + COUNTED_AT_ONCE]
        if not np.array_equal(np.trunc(some), some):
            return None
        counts += np.bincount((some - low).astype(np.intp), minlength=len(counts))
    reached = np.cumsum(counts)
    found = []
    for percentile in percentiles:
        place = percentile / 100 * (len(values) - 1)
        before = int(place)
        one, next_one = np.searchsorted(reached, [before, min(before + 1, len(values) - 1)], side="right") + low
        way, gap = place - before, next_one - one
        found.append(float(next_one - gap * (1 - way) if way >= 0.5 else one + gap * way))  # as numpy rounds it
    return found


def to_grey(values: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    """Map [low, high] onto [0, 1], clipped."""
    low, high = window
    grey = values.astype(np.float32)
    grey -= low
    grey /= max(high - low, 1e-6)
    return np.clip(grey, 0.0, 1.0, out=grey)


def viewed(values: np.ndarray, centre: float, width: float, function: str) -> np.ndarray:
    """The grey in [0, 1] that DICOM PS3.3 C.11.2.1 defines for a window: LINEAR, LINEAR_EXACT or SIGMOID."""
    if function == "SIGMOID":
        return (1.0 / (1.0 + np.exp(-4.0 * (values.astype(np.float32) - centre) / max(width, 1e-6)))).astype(np.float32)
    if function == "LINEAR_EXACT":
        return to_grey(values, (centre - width / 2, centre + width / 2))
    return to_grey(values, (centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2))


def shows(values: np.ndarray, centre: float, width: float) -> bool:
    """Whether a window shows any of the film: some headers hold one of width 0, or one meant for other numbers, by
    which it would come out black, white, or without any grey."""
    inside = (values >= centre - width / 2) & (values <= centre + width / 2)
    return width > 0 and float(inside.mean()) >= LEAST_SHOWN


@lru_cache(maxsize=64)
def _weights(num_in: int, num_out: int, step: float) -> np.ndarray:
    """Those of a centred film; the films of one machine have one size, and weights cost as much as their use."""
    return resample.linear_weights(num_in, resample.centred(num_in, num_out, step), step)


def fit(grey: np.ndarray, size: tuple[int, int], how: Fit) -> np.ndarray:
    """Bring H W floats in [0, 1] to `size` as uint8, the aspect kept.

    letterbox: the whole film, margins UNKNOWN_GREY. crop: the largest centred window of the wanted aspect.
    """
    step, inner, window = _inner(grey.shape, size, how)
    weights = tuple(_weights(n, m, step) for n, m in zip(grey.shape, inner, strict=True))
    small = np.clip(resample.apply(grey, weights), 0.0, 1.0)
    darkest = UNKNOWN_GREY + 1 if how == "letterbox" else 0
    out = np.full(size, UNKNOWN_GREY, dtype=np.uint8)
    out[window] = nearest_integer(darkest + small * (255 - darkest)).astype(np.uint8)
    return out


def fit_mask(mask: np.ndarray, size: tuple[int, int], how: Fit) -> np.ndarray:
    """Bring H W classes to `size` as `fit` brings their film: the nearest class, UNKNOWN_CLASS in the margins."""
    step, inner, window = _inner(mask.shape, size, how)
    index = [resample.nearest_index(n, resample.centred(n, m, step))[0] for n, m in zip(mask.shape, inner, strict=True)]
    out = np.full(size, UNKNOWN_CLASS, dtype=np.uint8)
    out[window] = mask[np.ix_(*index)]
    return out


def placed(whole: tuple[int, ...], box: tuple[slice, ...], size: tuple[int, int], how: Fit,
           spacing: tuple[float, float] | None) -> Placement:
    """Where `fit` puts a part of a film: `box` of the `whole`.

    Args:
        spacing: millimetres between rows and between columns, where the file tells them.
    """
    shape = tuple(side.stop - side.start for side in box)
    step, inner, window = _inner(shape, size, how)
    starts = tuple(side.start + float(resample.centred(n, m, step)[0]) - edge.start * step
                   for side, n, m, edge in zip(box, shape, inner, window, strict=True))
    affine = () if spacing is None else (spacing[1], 0.0, 0.0, 0.0, spacing[0], 0.0)
    return Placement(shape=tuple(whole), axes=(0, 1), starts=starts, steps=(step, step), affine=affine)


def _inner(shape: tuple[int, ...], size: tuple[int, int], how: Fit) -> tuple[float, list[int], tuple[slice, slice]]:
    """Pixels of the film per stored one, rows and columns that it takes, and where those lie."""
    steps = [n / m for n, m in zip(shape, size, strict=True)]
    step = max(steps) if how == "letterbox" else min(steps)
    inner = [min(m, max(1, round(n / step))) for n, m in zip(shape, size, strict=True)]
    top, left = ((m - k) // 2 for m, k in zip(size, inner, strict=True))
    return step, inner, (slice(top, top + inner[0]), slice(left, left + inner[1]))
