"""Does a film look as if text were burned into its pixels? A detector of lines of writing, for a warning.

Writing is thin strokes of one grey that stand out from what is around them, in at least three marks of like height side
by side. Found are lines of print; what is missed, and what is taken for print, is in docs/reliability.md. It reads
nothing and clears nothing: a film without a finding is not thereby free of text.

Legend: H W pixels, K marks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from domains.medical.film import as_grey

MAX_EDGE = 1200
"""Films are looked at with at most so many pixels along an edge: print that can be read on the whole film is then at
least 8 high, and the search costs a tenth of decoding."""
CONTRASTS = (0.14, 0.3)
"""How far a stroke stands out, as a share of the grey range. By the lower one faint print is found, by the higher one
print so small that its blurred letters touch. Ribs, vessels and noise stand out less over so few pixels."""
MAX_STROKE = 1 / 40
"""Width of the thickest stroke that is looked for, as a share of the shorter edge; at least MIN_STROKE pixels."""
MIN_STROKE = 5
MIN_HEIGHT, MAX_HEIGHT = 5, 1 / 8
"""Height of a mark: pixels, and share of the shorter edge."""
MOST_MARKED = 0.12
"""A film of which more than this share stands out is noise or lattice: nothing can be told."""
MIN_MARKS = 3
"""Marks in a line. L and R, which every film may carry, are one or two."""
MIN_AREA = 5
"""Pixels of a mark."""
ROWS = 128
"""Of a film that are turned into bytes at once."""
SAME_GREY = 0.1
"""Marks of one line are printed in one grey."""
NEARLY, MIN_FLAT = 0.12, 0.2
"""Print is flat: at least MIN_FLAT of its pixels are within NEARLY of the brightest. At the size of a thumbnail most of
a letter is blurred edge."""


@dataclass(frozen=True)
class Marks:
    """Connected strokes, K each."""

    top: np.ndarray
    left: np.ndarray
    height: np.ndarray
    width: np.ndarray
    area: np.ndarray
    """Pixels."""
    grey: np.ndarray
    """Brightest, 0 to 1: what the middle of a stroke was printed with, before its edges were blurred."""
    flat: np.ndarray
    """Share of the pixels that are nearly as bright."""


def lines_of_text(grey: np.ndarray) -> list[tuple[int, int, int, int]]:
    """Boxes (top, left, bottom, right) of what looks like lines of print, in pixels of the film.

    Args:
        grey: H W of 0 to 1, or bytes of 0 to 255.
    """
    step = max(1, -(-max(grey.shape) // MAX_EDGE))
    if min(grey.shape, default=0) // step < 2 * MIN_STROKE:
        return []
    values = grey if step == 1 and grey.dtype == np.uint8 else _bytes(grey, step)
    found = []
    for upright in (values, 255 - values):  # light print, and dark print
        above = _standing_out(upright)
        pixels = np.flatnonzero(above > int(255 * CONTRASTS[0]))  # a whole number: bytes are compared as they are
        for contrast in CONTRASTS:  # what stands out by the higher one does so by the lower
            pixels = pixels[above.ravel()[pixels] > int(255 * contrast)]
            if len(pixels) < MIN_MARKS * MIN_AREA:
                break
            found += _lines(_marks(pixels, upright), min(values.shape))
    return [(top * step, left * step, bottom * step, right * step) for top, left, bottom, right in _merged(found)]


def _bytes(grey: np.ndarray, step: int) -> np.ndarray:
    """The film as bytes, of squares of `step` pixels their mean, some rows after the other: temporaries stay small.
    The mean keeps strokes; taking every step-th pixel would break them. It is written out, since numpy's takes ten
    times as long over squares so small."""
    height, width = (n // step for n in grey.shape)
    out = np.empty((height, width), np.uint8)
    rows = max(1, ROWS // step)
    for top in range(0, height, rows):
        some = as_grey(grey[top * step:min(top + rows, height) * step, :width * step])
        if step > 1:
            across = sum((some[:, k::step] for k in range(2, step)), some[:, 0::step] + some[:, 1::step])
            some = sum((across[k::step] for k in range(2, step)), across[0::step] + across[1::step]) / step**2
        scaled = some * 255
        if not (scaled.min() >= 0 and scaled.max() <= 255):  # or not a number
            scaled = np.nan_to_num(scaled).clip(0, 255)
        out[top:top + rows] = scaled
    return out


def _merged(boxes: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """One box for those that overlap: a line is found at several contrasts, and the gaps of light print look dark."""
    apart: list[tuple[int, int, int, int]] = []
    for box in sorted(boxes):
        while touching := [other for other in apart if _overlap(box, other)]:
            apart = [other for other in apart if other not in touching]
            tops, lefts, bottoms, rights = zip(box, *touching, strict=True)
            box = min(tops), min(lefts), max(bottoms), max(rights)
        apart.append(box)
    return apart


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


# ---- strokes ----

def _standing_out(values: np.ndarray) -> np.ndarray:
    """By how much pixels are brighter than everything around that is wider than a stroke (a top-hat)."""
    size = max(MIN_STROKE, round(MAX_STROKE * min(values.shape))) | 1
    opened = _spread_out(_spread_out(values, size, np.minimum), size, np.maximum)
    return np.asarray(values - opened)  # never negative: an opening lies below its image


def _spread_out(values: np.ndarray, size: int, extreme: np.ufunc) -> np.ndarray:
    """The extreme over squares of `size` pixels, by doubling: log2(size) passes along each axis.

    All passes go over one line of pixels, which takes half the time of going row by row: what they mix at the ends of
    rows lies in the margin.
    """
    height, width = values.shape
    half = size // 2
    wide = np.empty((height + size - 1, width + size - 1), values.dtype)
    inner = wide[half:half + height]
    inner[:, half:half + width] = values
    inner[:, :half], inner[:, half + width:] = values[:, :1], values[:, -1:]
    wide[:half], wide[half + height:] = inner[:1], inner[-1:]
    line, other, length = wide.ravel(), np.empty(wide.size, values.dtype), wide.size
    for stride in (1, wide.shape[1]):
        reach = 1
        while reach < size:
            shift = min(reach, size - reach)
            length -= shift * stride
            extreme(line[:length], line[shift * stride:shift * stride + length], out=other[:length])
            line, other = other, line
            reach += shift
    return line[:height * wide.shape[1]].reshape(height, -1)[:, :width]


def _marks(pixels: np.ndarray, values: np.ndarray) -> Marks:
    """Runs of pixels along rows, joined where they touch (also at a corner), and summed up per joined piece.

    Args:
        pixels: places of strokes in the film's pixels, ascending.
        values: H W.
    """
    if len(pixels) > MOST_MARKED * values.size:
        pixels = pixels[:0]
    # One line of pixels, with two empty ones between rows, so that runs of different rows never look adjacent.
    stride = values.shape[1] + 2
    line = pixels + 2 * (pixels // values.shape[1])
    cuts = np.flatnonzero(np.diff(line, prepend=-2, append=np.iinfo(np.int64).max) != 1)
    begin, end = line[cuts[:-1]], line[cuts[1:] - 1] + 1
    pieces, piece = np.unique(_joined(begin, end, stride), return_inverse=True)
    num, lengths = len(pieces), end - begin
    of_pixel, inside = np.repeat(piece, lengths), values.ravel()[pixels]
    area = np.bincount(of_pixel, minlength=num)
    brightest = np.zeros(num, np.uint8)
    np.maximum.at(brightest, of_pixel, inside)
    flat = np.bincount(of_pixel, inside >= brightest[of_pixel] - 255 * NEARLY, num) / np.maximum(area, 1)
    row, left_of, right_of = begin // stride, begin % stride, begin % stride + lengths
    top, left = np.full(num, len(values)), np.full(num, stride)
    bottom, right = np.zeros(num, np.int64), np.zeros(num, np.int64)
    np.minimum.at(top, piece, row)
    np.minimum.at(left, piece, left_of)
    np.maximum.at(bottom, piece, row + 1)
    np.maximum.at(right, piece, right_of)
    return Marks(top, left, bottom - top, right - left, area, brightest / 255, flat)


def _joined(begin: np.ndarray, end: np.ndarray, stride: int) -> np.ndarray:
    """Per run the smallest run that it hangs together with. Runs are [begin, end) in the line of all pixels."""
    lowest = np.searchsorted(end, begin - stride, side="left")
    highest = np.searchsorted(begin, end - stride, side="right")
    counts = np.maximum(highest - lowest, 0)
    below = np.repeat(np.arange(len(begin)), counts)
    above = np.repeat(lowest - np.cumsum(counts) + counts, counts) + np.arange(len(below))
    names = np.arange(len(begin))
    while True:  # the smaller name wins on both sides; names of names shorten the way, so that few rounds do
        before = names.copy()
        low = np.minimum(names[above], names[below])
        np.minimum.at(names, above, low)
        np.minimum.at(names, below, low)
        names = names[names]
        if np.array_equal(names, before):
            return names


# ---- lines ----

def _lines(marks: Marks, edge: int) -> list[tuple[int, int, int, int]]:
    """Boxes of rows of at least MIN_MARKS marks that could be letters of one print."""
    letter = ((marks.height >= MIN_HEIGHT) & (marks.height <= MAX_HEIGHT * edge) & (marks.width <= 6 * marks.height)
              & (marks.area >= 0.12 * marks.height * marks.width) & (marks.area >= MIN_AREA))
    order = np.flatnonzero(letter)
    order = order[np.argsort(marks.left[order], kind="stable")]
    after = _neighbours(order, marks) if len(order) >= MIN_MARKS else {}
    goes_on = np.zeros(len(marks.top), bool)
    goes_on[list(after)] = True
    taken = np.zeros(len(marks.top), bool)
    found = []
    for start in after:
        if taken[start] or not goes_on[after[start]].any():  # a line has at least three marks
            continue
        chain = _chain(start, after, marks, taken)
        if len(chain) >= MIN_MARKS and _is_print(np.array(chain), marks):
            taken[chain] = True
            rows = np.array(chain)
            found.append((int(marks.top[rows].min()), int(marks.left[rows].min()),
                          int((marks.top + marks.height)[rows].max()), int((marks.left + marks.width)[rows].max())))
    return found


def _neighbours(order: np.ndarray, marks: Marks) -> dict[int, np.ndarray]:
    """Each mark that a line may go on from -> those that it may go on to, from the left.

    Args:
        order: marks that could be letters, from the left.
    """
    left, height, grey = marks.left[order], marks.height[order], marks.grey[order]
    right, middle = left + marks.width[order], (marks.top + marks.height / 2)[order]
    first = np.searchsorted(left, np.maximum(right - 0.3 * height - 1, left), side="left")
    last = np.searchsorted(left, right + 1.2 * height + 1, side="right")
    counts = np.maximum(last - first, 0)
    a = np.repeat(np.arange(len(order)), counts)
    b = np.repeat(first - np.cumsum(counts) + counts, counts) + np.arange(len(a))
    gap = left[b] - right[a]
    fits = ((gap >= -0.3 * height[a]) & (gap <= 1.2 * height[a]) & (left[b] > left[a])
            & (np.abs(middle[b] - middle[a]) <= 0.3 * height[a])
            & (height[b] <= 1.5 * height[a]) & (height[b] >= height[a] / 1.5)
            & (np.abs(grey[b] - grey[a]) <= 2 * SAME_GREY))  # both may be as far from the line's first, to either side
    a, b = a[fits], b[fits]
    starts = np.flatnonzero(np.diff(a, prepend=-1))
    return dict(zip(order[a[starts]].tolist(), np.split(order[b], starts[1:]), strict=True)) if len(a) else {}


def _chain(start: int, after: Mapping[int, np.ndarray], marks: Marks, taken: np.ndarray) -> list[int]:
    """From the leftmost mark to the right, each time the nearest that goes on with the line."""
    chain = [start]
    while len(near := after.get(chain[-1], ())):
        fits = near[~taken[near] & (np.abs(marks.grey[near] - marks.grey[start]) <= SAME_GREY)]
        if not len(fits):
            break
        chain.append(int(fits[0]))
    return chain


def _is_print(chain: np.ndarray, marks: Marks) -> bool:
    """Letters stand on one line and are flat inside; beads of a catheter or rib edges do not and are not."""
    heights = marks.height[chain]
    bottoms = (marks.top + marks.height)[chain]
    return bool(np.median(np.abs(bottoms - np.median(bottoms))) <= max(1.0, 0.15 * np.median(heights))
                and np.median(marks.flat[chain]) >= MIN_FLAT)
