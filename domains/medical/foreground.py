"""Where the patient is: the box around what is denser than air, so that air and table need not be stored. numpy only.

Legend: D H W coarse cells of a volume (D is absent for films).
"""

from __future__ import annotations

import numpy as np

from domains.sample import Refused

CELL_MM = 4.0
"""Edge of the cells that a volume is looked at in: wide enough for noise to average out and for speed."""
DENSER_THAN_AIR_HU = -500.0
"""A cell that is half air and half skin."""
OPENED = 2
"""Layers that are taken off before components are counted: what is thinner than 4 cells (16 mm) falls away, such as
the shells of a table, tubes and blankets, and whatever they connect."""
KEPT_SHARE = 0.02
"""Of the largest component, what another one needs to count as patient: an arm beside the trunk has a few percent."""
MARGIN = 2
"""Cells around the box: ears, noses and fingers are thinner than what was taken off."""
FILM_CELLS = 128
"""Cells along the longer side of a film."""
EXPOSED_GREY = 0.08
"""Of the grey scale: what the collimator shut off and the frame of a scanned film lie below."""

Box = tuple[slice, ...]


def body(hu: np.ndarray, known: np.ndarray) -> Box:
    """The cells around the patient.

    Args:
        hu: D H W Hounsfield units in cells of CELL_MM. known: the same shape, bool.

    Raises:
        Refused: nothing is denser than air.
    """
    dense = known & (hu > DENSER_THAN_AIR_HU)
    if not dense.any():
        raise Refused(f"nothing in it is denser than air ({DENSER_THAN_AIR_HU:g} HU)")
    return _box(dense)


def exposed(grey: np.ndarray) -> Box:
    """The pixels of a film (H W floats in [0, 1]) inside its black border. A film without any light is kept whole."""
    cell = max(1, -(-max(grey.shape) // FILM_CELLS))
    padded = np.pad(grey, [(0, -n % cell) for n in grey.shape], mode="edge")
    rows, columns = (n // cell for n in padded.shape)
    bright = padded.reshape(rows, cell, columns, cell).mean(axis=(1, 3)) > EXPOSED_GREY
    if not bright.any():
        return tuple(slice(0, n) for n in grey.shape)
    return tuple(slice(side.start * cell, min(side.stop * cell, n))
                 for side, n in zip(_box(bright), grey.shape, strict=True))


def _box(dense: np.ndarray) -> Box:
    """Around the large connected parts of a map, with a margin."""
    for layers in range(OPENED, -1, -1):  # what is thin everywhere (a small cut-out) is taken as it is
        core = dense
        for _ in range(layers):
            core = _eroded(core)
        if core.any():
            break
    places = np.concatenate(_large_parts(core))
    low, high = places.min(axis=0) - layers - MARGIN, places.max(axis=0) + 1 + layers + MARGIN
    return tuple(slice(max(0, int(a)), min(n, int(b))) for a, b, n in zip(low, high, dense.shape, strict=True))


def _eroded(dense: np.ndarray) -> np.ndarray:
    """Without its outermost layer. What reaches the border of the scan is taken to go on beyond it."""
    out = dense.copy()
    for axis in range(dense.ndim):
        first, last = np.take(dense, [0], axis), np.take(dense, [-1], axis)
        wide = np.concatenate([first, dense, last], axis)
        out &= np.take(wide, range(dense.shape[axis]), axis) & np.take(wide, range(2, dense.shape[axis] + 2), axis)
    return out


def _large_parts(dense: np.ndarray) -> list[np.ndarray]:
    """Places (n axes) of the connected components that are not much smaller than the largest."""
    wide = np.pad(dense, 1).ravel()  # a border of air, so that neighbours of flat indices never wrap around
    shape = tuple(n + 2 for n in dense.shape)
    steps = np.array([int(np.prod(shape[axis + 1:])) for axis in range(dense.ndim)])
    around = np.concatenate([steps, -steps])
    parts, left, largest = [], int(wide.sum()), 0
    seed = 0
    while left > KEPT_SHARE * largest:
        seed += int(wide[seed:].argmax())
        wide[seed] = False
        front, part = np.array([seed]), [np.array([seed])]
        while front.size:
            near = np.unique((front[:, None] + around).ravel())
            front = near[wide[near]]
            wide[front] = False
            part.append(front)
        parts.append(np.concatenate(part))
        left -= parts[-1].size
        largest = max(largest, parts[-1].size)
    kept = [part for part in parts if part.size >= KEPT_SHARE * largest]
    return [np.stack(np.unravel_index(part, shape), axis=1) - 1 for part in kept]
