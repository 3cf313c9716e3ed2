"""Cuts scenes into square chips while they are read, so that memory holds what will be stored and not the scene.

Legend: M points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from domains.pointcloud.cloud import Cloud, join, largest
from domains.sample import Refused

FARTHEST_CELL = 2**31
"""Chips are numbered from the origin of the map; the number of one must fit a stored integer."""
COLLECT = 1_000_000
"""Points that are added, or as many as are kept, before those too many are let go again."""


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
        self.extents: dict[tuple[int, int], Extent] = {}
        self.largest: dict[str, float] = {}
        self._kept: list[tuple[np.ndarray, np.ndarray, Cloud]] = []  # cells M 2, lots M, points
        self._fresh = 0

    def add(self, portion: Cloud) -> None:
        """Finite points, as many as fit into memory at once."""
        if not len(portion.xyz):
            return
        cells = self._cells(portion.xyz[:, :2])
        self._measure(cells, portion)
        for name, top in largest(portion).items():
            self.largest[name] = max(self.largest.get(name, 0.0), top)
        self._kept.append((cells, self.rng.random(len(cells)), portion))
        self._fresh += len(cells)
        if self._fresh > max(COLLECT, len(self._kept[0][0])):
            self._thin()

    def chips(self) -> Iterator[tuple[tuple[int, int], Extent, Cloud]]:
        """Number of the chip along x and y, what it spans, and its points in random order."""
        if not self._kept:
            return
        self._thin()
        cells, _, points = self._kept[0]
        starts = np.flatnonzero(np.any(cells[1:] != cells[:-1], axis=1)) + 1
        for members in np.split(np.arange(len(cells)), starts):
            place = int(cells[members[0], 0]), int(cells[members[0], 1])
            yield place, self.extents[place], points.take(members)

    def _cells(self, xy: np.ndarray) -> np.ndarray:
        if not self.side:
            return np.zeros(xy.shape, np.int64)
        cells = np.floor(xy / self.side)
        if np.abs(cells).max() >= FARTHEST_CELL:
            raise Refused(f"found coordinates up to {np.abs(xy).max():.3g}, too far out for tiles of {self.side:g}")
        return cells.astype(np.int64)

    def _measure(self, cells: np.ndarray, portion: Cloud) -> None:
        order = np.lexsort((cells[:, 1], cells[:, 0]))
        own, xyz = cells[order], portion.xyz[order]
        starts = np.concatenate([[0], np.flatnonzero(np.any(own[1:] != own[:-1], axis=1)) + 1])
        low, high = np.minimum.reduceat(xyz, starts), np.maximum.reduceat(xyz, starts)
        counts = np.diff(np.append(starts, len(own)))
        for i, start in enumerate(starts):
            place = int(own[start, 0]), int(own[start, 1])
            before = self.extents.get(place, Extent(0, low[i], high[i]))
            self.extents[place] = Extent(before.count + int(counts[i]), np.minimum(before.low, low[i]),
                                         np.maximum(before.high, high[i]))

    def _thin(self) -> None:
        """Sort by chip and by lot, and keep the first `limit` of each chip: those that a draw of all would keep."""
        cells = np.concatenate([cells for cells, _, _ in self._kept])
        lots = np.concatenate([lots for _, lots, _ in self._kept])
        points = join([points for _, _, points in self._kept])
        order = np.lexsort((lots, cells[:, 1], cells[:, 0]))
        own = cells[order]
        begins = np.concatenate([[True], np.any(own[1:] != own[:-1], axis=1)])
        place = np.arange(len(own))
        rank = place - np.maximum.accumulate(np.where(begins, place, 0))
        kept = order[rank < self.limit]
        self._kept, self._fresh = [(cells[kept], lots[kept], points.take(kept))], 0
