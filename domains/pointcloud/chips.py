"""Cuts scenes into square chips while they are read, so that memory holds what will be stored and not the scene.

Legend: M points.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from domains.pointcloud.cloud import Cloud, join, largest
from domains.sample import Refused

FARTHEST_CELL = 2**31
"""Chips are numbered from the origin of the map; the number of one must fit a stored integer."""
COLLECT = 1_000_000
"""Points that are added, or as many as are kept, before those too many are let go again."""


NO_LOT = 2**32
"""Above every lot."""


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
        self._kept: list[tuple[np.ndarray, np.ndarray, Cloud]] = []  # codes of chips M, lots M, points
        self._fresh = 0
        self._full = np.zeros(0, np.int64), np.zeros(0, np.int64)  # codes of chips, lots that are too high for them

    def add(self, portion: Cloud) -> None:
        """Finite points, as many as fit into memory at once."""
        if not len(portion.xyz):
            return
        codes = self._codes(portion.xyz[:, :2])
        self._measure(codes, portion)
        for name, top in largest(portion).items():
            self.largest[name] = max(self.largest.get(name, 0.0), top)
        lots = self.rng.integers(0, NO_LOT, len(codes))
        stays = lots < self._too_high(codes)
        self._kept.append((codes[stays], lots[stays], portion.take(stays)))
        self._fresh += int(np.count_nonzero(stays))
        if self._fresh > max(COLLECT, len(self._kept[0][0])):
            self._thin()

    def chips(self) -> Iterator[tuple[tuple[int, int], Extent, Cloud]]:
        """Number of the chip along x and y, what it spans, and its points in random order."""
        if not self._kept:
            return
        self._thin()
        codes, _, points = self._kept[0]
        starts = np.flatnonzero(codes[1:] != codes[:-1]) + 1
        for members in np.split(np.arange(len(codes)), starts):
            place = _place(int(codes[members[0]]))
            yield place, self.extents[place], points.take(members)

    def _codes(self, xy: np.ndarray) -> np.ndarray:
        """M: one number per chip, which sorts by x, then by y."""
        if not self.side:
            return np.full(len(xy), _code(0, 0))
        cells = np.floor(xy / self.side)
        if np.abs(cells).max() >= FARTHEST_CELL:
            raise Refused(f"found coordinates up to {np.abs(xy).max():.3g}, too far out for tiles of {self.side:g}")
        x, y = cells.astype(np.int64).T
        return np.asarray(_code(x, y))

    def _measure(self, codes: np.ndarray, portion: Cloud) -> None:
        order = np.argsort(codes)
        own, xyz = codes[order], portion.xyz[order]
        starts = np.concatenate([[0], np.flatnonzero(own[1:] != own[:-1]) + 1])
        low, high = np.minimum.reduceat(xyz, starts), np.maximum.reduceat(xyz, starts)
        counts = np.diff(np.append(starts, len(own)))
        for i, start in enumerate(starts):
            place = _place(int(own[start]))
            before = self.extents.get(place, Extent(0, low[i], high[i]))
            self.extents[place] = Extent(before.count + int(counts[i]), np.minimum(before.low, low[i]),
                                         np.maximum(before.high, high[i]))

    def _too_high(self, codes: np.ndarray) -> np.ndarray:
        """M: the lot from which on a point of that chip would be let go at once."""
        full, lots = self._full
        if not len(full):
            return np.full(len(codes), NO_LOT)
        at = np.searchsorted(full, codes).clip(max=len(full) - 1)
        return np.where(full[at] == codes, lots[at], NO_LOT)

    def _thin(self) -> None:
        """Sort by chip and by lot, and keep the first `limit` of each chip: those that a draw of all would keep."""
        codes = np.concatenate([codes for codes, _, _ in self._kept])
        lots = np.concatenate([lots for _, lots, _ in self._kept])
        points = join([points for _, _, points in self._kept])
        chips, chip = np.unique(codes, return_inverse=True)
        order = np.argsort((chip.astype(np.int64) << 32) | lots)  # a lot has 32 bits, and one key sorts faster than two
        own, place = chip[order], np.arange(len(order))
        begins = np.concatenate([[True], own[1:] != own[:-1]])
        rank = place - np.maximum.accumulate(np.where(begins, place, 0))
        kept = order[rank < self.limit]
        last = order[rank == self.limit - 1]  # of chips that are full
        self._full = chips[chip[last]], lots[last]
        self._kept, self._fresh = [(codes[kept], lots[kept], points.take(kept))], 0


def _code(x: Any, y: Any) -> Any:
    """One number of two between -2**31 and 2**31."""
    return x * 2**32 + (y + FARTHEST_CELL)


def _place(code: int) -> tuple[int, int]:
    """The inverse of `_code`."""
    return code >> 32, (code & 0xFFFFFFFF) - FARTHEST_CELL
