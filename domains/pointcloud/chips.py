"""Cuts scenes into square chips while they are read, so that memory holds what will be stored and not the scene.

Legend: M points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from domains.pointcloud.cloud import Cloud, join, largest
from domains.sample import Refused

FARTHEST_CELL = 2**31
"""Chips are numbered from the origin of the map; the number of one must fit a stored integer."""
SLACK = 0.5
"""Points that a chip may hold beyond its limit, as a share of it, before those too many are let go: letting go of a few
at a time would sort the rest again and again."""
FEW_CHIPS = 2**16
"""A portion that touches no more cells of the grid is sorted by numbers of 16 bits, in two passes."""
NO_LOT = 2**32
"""Above every lot."""
_PLACE_BITS = 31


@dataclass(frozen=True)
class Extent:
    """What all points of a chip span, those that are not kept included."""

    count: int
    """Points."""
    low: np.ndarray
    """3, lowest x, y and z."""
    high: np.ndarray
    """3, highest."""


class Chips:
    """Portions of a scene go in, chips come out: of each at most `limit` points, every choice of them equally likely.

    The grid is that of the map, multiples of `side` from 0: two surveys of one place are cut alike, and no portion has
    to be seen before another.
    """

    def __init__(self, side: float, limit: int, rng: np.random.Generator) -> None:
        """side: of a chip, in the unit of the coordinates; 0: everything is one chip."""
        self.side, self.limit, self.rng = side, limit, rng
        self.largest: dict[str, float] = {}
        self._chips: dict[tuple[int, int], _Chip] = {}

    @property
    def extents(self) -> dict[tuple[int, int], Extent]:
        """What each chip spans."""
        return {place: chip.extent for place, chip in self._chips.items()}

    @property
    def num_held(self) -> int:
        """Points in memory."""
        return sum(chip.num_held for chip in self._chips.values())

    def add(self, portion: Cloud) -> None:
        """Finite points, as many as fit into memory at once."""
        if not len(portion.xyz):
            return
        for name, top in largest(portion).items():
            self.largest[name] = max(self.largest.get(name, 0.0), top)
        lots = self.rng.integers(0, NO_LOT, len(portion.xyz))
        cells = self._cells(portion.xyz[:, :2])
        order, starts = _by_cell(cells)
        if len(starts) > 1:
            lots, portion = lots[order], portion.take(order)
        low, high = np.minimum.reduceat(portion.xyz, starts), np.maximum.reduceat(portion.xyz, starts)
        places = cells[order[starts]].tolist()
        for n, (begin, end) in enumerate(pairwise([*starts.tolist(), len(lots)])):
            chip = self._chips.setdefault((places[n][0], places[n][1]), _Chip(self.limit))
            chip.measure(Extent(end - begin, low[n], high[n]))
            chip.keep(lots[begin:end], portion.xyz[begin:end],
                      {name: values[begin:end] for name, values in portion.more.items()})

    def chips(self) -> Iterator[tuple[tuple[int, int], Extent, Cloud]]:
        """Number of the chip along x and y, what it spans, and its points in random order; sorted by x, then by y. The
        points of a chip that was given are forgotten."""
        for place in sorted(self._chips):
            yield place, self._chips[place].extent, self._chips[place].points()

    def _cells(self, xy: np.ndarray) -> np.ndarray:
        """M 2 int64."""
        if not self.side:
            return np.zeros((len(xy), 2), np.int64)
        cells = np.floor(xy / self.side)
        if np.abs(cells).max() >= FARTHEST_CELL:
            raise Refused(f"found coordinates up to {np.abs(xy).max():.3g}, too far out for tiles of {self.side:g}")
        return cells.astype(np.int64)


class _Chip:
    """What is kept of one chip: the points with the lowest lots so far."""

    def __init__(self, limit: int) -> None:
        self.limit, self.num_held, self.too_high = limit, 0, NO_LOT
        self.extent = Extent(0, np.full(3, np.inf), np.full(3, -np.inf))
        self._lots: list[np.ndarray] = []
        self._points: list[Cloud] = []

    def measure(self, more: Extent) -> None:
        """Points that have come, whether they are kept or not."""
        self.extent = Extent(self.extent.count + more.count, np.minimum(self.extent.low, more.low),
                             np.maximum(self.extent.high, more.high))

    def keep(self, lots: np.ndarray, xyz: np.ndarray, more: dict[str, np.ndarray]) -> None:
        """Those of some points whose lots are not too high; copies, since views would hold the whole portion."""
        stays = np.flatnonzero(lots < self.too_high)
        self._lots.append(lots[stays].astype(np.uint32))
        self._points.append(Cloud(xyz, more).take(stays))
        self.num_held += len(stays)
        if self.num_held > (1 + SLACK) * self.limit:
            self._thin()

    def _thin(self) -> None:
        """Keep the lowest `limit` lots, in rising order: those that a draw of all would keep."""
        lots = np.concatenate(self._lots)
        # Of equal lots the one that came first: with their places in it, no two keys are equal.
        keys = np.sort((lots.astype(np.int64) << _PLACE_BITS) | np.arange(len(lots)))[:self.limit]
        kept = keys & (2**_PLACE_BITS - 1)
        self._lots, self._points = [lots[kept]], [join(self._points).take(kept)]
        self.num_held = len(kept)
        if len(kept) == self.limit:
            self.too_high = int(self._lots[0][-1])

    def points(self) -> Cloud:
        """At most `limit`, in the order of their lots, which is random. They are kept no longer."""
        self._thin()
        (points,) = self._points
        self._lots, self._points, self.num_held = [], [], 0
        return points


def _by_cell(cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points in the order of their cells (by x, then by y; in a cell as they came), and where each cell begins."""
    low = cells.min(axis=0)
    across, up = (cells.max(axis=0) - low + 1).tolist()
    if across == up == 1:
        return np.arange(len(cells)), np.zeros(1, np.int64)
    if across * up <= FEW_CHIPS:
        numbers = ((cells[:, 0] - low[0]) * up + cells[:, 1] - low[1]).astype(np.uint16)
        order = np.argsort(numbers, kind="stable")
        changes = np.diff(numbers[order]) != 0
    else:  # so wide that numbers of a cell might not fit an integer
        order = np.lexsort((cells[:, 1], cells[:, 0]))
        changes = np.diff(cells[order], axis=0).any(axis=1)
    return order, np.concatenate([[0], np.flatnonzero(changes) + 1])
