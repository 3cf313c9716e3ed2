"""From the numbers of a radiograph to grey levels on the training grid. numpy only; the files are read in ingest.py."""

from __future__ import annotations

import math
from collections.abc import Callable
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
IN_SAMPLE = 2**13
"""Of them, about, from which guesses are taken."""
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


def percentile_window(values: np.ndarray, valid: np.ndarray | None, percentiles: tuple[float, float],
                      plus: float = 0.0) -> tuple[float, float]:
    """The two values between which the grey scale runs, from the pixels that the detector saw.

    Args:
        values: H W numbers, to which `plus` is still to be added.
        valid: H W bool; None: all.
    """
    seen = values.ravel() if valid is None or valid.all() else values[valid]
    found = _by_counting(seen, percentiles, plus)
    low, high = np.percentile((seen + plus).astype(np.float32), percentiles) if found is None else found
    return float(low), float(high)


def _by_counting(values: np.ndarray, percentiles: tuple[float, float], plus: float) -> list[float] | None:
    """What numpy's percentiles are, of whole numbers that span no more than 16 bits, as a detector's do: counting those
    that come into question takes a tenth of ordering all. None for other values."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if not (high - low < MOST_COUNTED and abs(low + plus) + abs(high + plus) < 2**23 and plus.is_integer()):
        return None  # also for what is not finite
    if values.dtype.kind == "f":
        floats, values = values, values.astype(np.int32)
        if not np.array_equal(floats, values):
            return None
    sample = np.sort(values[::len(values) // IN_SAMPLE | 1])  # odd: else of many films from a few columns alone
    found = []
    for percentile in percentiles:
        place = percentile / 100 * (len(values) - 1)
        before = int(place)
        one, next_one = (number + plus for number in _at(values, before, sample, (int(low), int(high))))
        way, gap = place - before, next_one - one
        found.append(float(next_one - gap * (1 - way) if way >= 0.5 else one + gap * way))  # as numpy rounds it
    return found


def _at(values: np.ndarray, place: int, sample: np.ndarray, ends: tuple[int, int]) -> tuple[int, int]:
    """The whole numbers at this place of the order and at the next one (where there is one).

    Args:
        sample: some of the values, in order; they tell between which two the wanted ones most likely are.
        ends: the smallest and the largest value.
    """
    share, after = place / len(values), min(place + 1, len(values) - 1)
    reach = 3 * math.sqrt(len(sample) * share * (1 - share)) + 2
    likely = [int(sample[int(min(max(share * len(sample) + way, 0), len(sample) - 1))]) for way in (-reach, reach)]
    for first, last in (likely, ends):
        below = 0 if first == ends[0] else int(np.count_nonzero(values < first))
        within = (values <= last) if first == ends[0] else (values >= first) & (values <= last)
        reached = below + np.cumsum(np.bincount(values[np.flatnonzero(within)].astype(np.intp) - first))
        if below <= place and after < reached[-1]:
            break
    one, other = first + np.searchsorted(reached, [place, after], side="right")
    return int(one), int(other)


def as_grey(pixels: np.ndarray) -> np.ndarray:
    """Bytes as floats in [0, 1]; floats as they are."""
    if pixels.dtype != np.uint8:
        return pixels
    grey = pixels.astype(np.float32)
    grey /= 255
    return grey


def in_bands(work: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """What `work` makes of each number of an image (H W), as float32; some rows after the other, so that all that it
    makes on the way stays in a processor's cache."""
    out = np.empty(values.shape, np.float32)
    step = max(1, resample.IN_BAND // max(values.shape[1], 1))
    for top in range(0, len(values), step):
        out[top:top + step] = work(values[top:top + step])
    return out


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


def shows(values: np.ndarray, exposed: np.ndarray | None, centre: float, width: float) -> bool:
    """Whether a window shows any of the film: some headers hold one of width 0, or one meant for other numbers, by
    which it would come out black, white, or without any grey.

    Args:
        exposed: bool, the pixels that count; None: all.
    """
    inside = values >= centre - width / 2
    inside &= values <= centre + width / 2
    count = values.size
    if exposed is not None:
        inside &= exposed
        count = int(np.count_nonzero(exposed))
    return width > 0 and int(np.count_nonzero(inside)) / count >= LEAST_SHOWN


@lru_cache(maxsize=64)
def _weights(num_in: int, num_out: int, step: float) -> tuple[np.ndarray, resample.Taps | None]:
    """Those of a centred film; the films of one machine have one size, and weights cost as much as their use."""
    weights = resample.linear_weights(num_in, resample.centred(num_in, num_out, step), step)
    return weights, resample.taps(weights)


def fit(grey: np.ndarray, size: tuple[int, int], how: Fit) -> np.ndarray:
    """Bring H W to `size` as uint8, the aspect kept.

    letterbox: the whole film, margins UNKNOWN_GREY. crop: the largest centred window of the wanted aspect.

    Args:
        grey: floats in [0, 1], or bytes.
    """
    step, inner, window = _inner(grey.shape, size, how)
    (rows, few_rows), (columns, few_columns) = (_weights(n, m, step) for n, m in zip(grey.shape, inner, strict=True))
    if few_rows is None or few_columns is None:
        small = resample.apply(as_grey(grey), (rows, columns))
    else:
        small = resample.apply_in_bands(grey, (rows, columns), (few_rows, few_columns), as_grey)
    small = np.clip(small, 0.0, 1.0)
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
