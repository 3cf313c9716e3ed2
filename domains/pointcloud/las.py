"""What stands in the records of a LAS file: places, attributes, noise, the unit; and how a few of many are drawn.

Records are laspy's, open already; nothing here opens a file.

Legend: M points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from domains.pointcloud.chips import Extent
from domains.pointcloud.cloud import Cloud, attributes, largest, span
from domains.pointcloud.settings import Points
from domains.sample import Refused

UNIT_TOLERANCE = 1e-4
"""The two feet differ by 2e-6, which is 10 m at five million; at a scene's size it is nothing."""
NOISE_CLASSES = (7, 18)
"""ASPRS classes of points that the surveyor has marked as noise: low and high."""

ROW = "row"
"""The attribute that numbers the points of a file, where they are numbered."""


def check_unit(told: float | None, height: float | None, settings: Points) -> None:
    """Surveys of one archive come in metres and in feet, and say so."""
    if told and height and abs(told - height) > UNIT_TOLERANCE * told:
        raise Refused(f"LAS: found heights in a unit of {height:.6g} m and a plan in one of {told:.6g} m, expected one "
                      "unit. Remedy: reproject the file")
    if told == 0:
        raise Refused("LAS: its coordinates are degrees, expected a length. Remedy: reproject the file to a metric "
                      "coordinate system")
    if told is not None and settings.metric and abs(told - settings.metres_per_unit) > UNIT_TOLERANCE * told:
        raise Refused(f"LAS: found a unit of {told:.6g} m, expected {settings.metres_per_unit:.6g} as set. Remedy: set "
                      "metres_per_unit to the file's, or reproject files of another unit")


def cloud_of(portion: Any, settings: Points, classes: bool, rows: np.ndarray | None) -> Cloud:
    """Points in the file's own coordinates, with the attributes that are kept.

    Args:
        classes: keep those of the points.
        rows: M, the points' numbers in the file; None: they have none.
    """
    told = {"class": np.asarray(portion.classification)[:, None]} if classes else {}
    return Cloud(xyz_of(portion), _kept(portion, settings) | told | ({} if rows is None else {ROW: rows[:, None]}))


def _kept(portion: Any, settings: Points) -> dict[str, np.ndarray]:
    names = set(portion.point_format.dimension_names) if settings.features else set()
    columns = {name: np.asarray(portion[name]) for name in ("intensity", "red", "green", "blue") if name in names}
    return {name: values for name, values in attributes(columns).items() if name in settings.features}


class Records:
    """Points that are all in memory, as the file holds them: of a hundred thousand only those that are drawn become
    coordinates, which takes half as long as all of them."""

    def __init__(self, portion: Any, wanted: np.ndarray | None, settings: Points,
                 cloud_at: Callable[[Any, np.ndarray], Cloud]) -> None:
        """
        Args:
            wanted: M bool; None: all.
            cloud_at: makes points of some records and of their numbers in the file: those that are finite.
        """
        self._portion, self._cloud_at = portion, cloud_at
        self._rows = None if wanted is None or wanted.all() else np.flatnonzero(wanted)
        self.num = len(portion) if self._rows is None else len(self._rows)
        kept = _kept(portion, settings)
        self.largest = largest(Cloud(np.zeros((0, 3)), kept if self._rows is None
                                     else {name: values[self._rows] for name, values in kept.items()}))
        self.extent = self._extent()
        """None where some points may lie nowhere: scale or offset are beyond numbers."""

    def take(self, index: np.ndarray) -> Cloud:
        """The points at these of the wanted ones."""
        rows = index if self._rows is None else self._rows[index]
        cloud = self._cloud_at(_records_at(self._portion, rows), rows)
        # Row after row, as numpy gives a choice of rows: sums over points then add up in the same order.
        return Cloud(np.ascontiguousarray(cloud.xyz), cloud.more)

    def _extent(self) -> Extent | None:
        """A coordinate is a whole number times a scale plus an offset, and rises or falls with it: the outermost
        numbers are the outermost coordinates, rounding included."""
        if not self.num:
            return None
        ends = []
        for name in "XYZ":
            column = np.array(self._portion[name])
            column = column if self._rows is None else column[self._rows]
            ends += [column.argmin(), column.argmax()]
        outermost = self.take(np.array(ends)).xyz
        return Extent(self.num, *span(outermost)) if len(outermost) == len(ends) else None


def _records_at(portion: Any, rows: np.ndarray) -> Any:
    """The same as `portion[rows]`, ten times as fast: numpy takes records of named fields field by field."""
    records = portion.array
    some = records.view(f"V{records.itemsize}")[rows].view(records.dtype)
    return type(portion)(some, portion.point_format, portion.scales, portion.offsets)


def xyz_of(portion: Any) -> np.ndarray:
    """M 3 of a portion of a LAS file, in the file's own coordinates."""
    xyz = np.empty((len(portion), 3))
    for axis, name in enumerate("xyz"):  # column by column: an array of its own for each would be copied once more
        xyz[:, axis] = getattr(portion, name)
    return xyz


def is_noise(portion: Any) -> np.ndarray:
    """M bool: points of a LAS file that `drop_noise` leaves out, marked by the surveyor as noise or as withheld."""
    told = np.ascontiguousarray(portion.classification)  # in the file 30 bytes and more lie between two of them
    return np.logical_or.reduce([told == noise for noise in NOISE_CLASSES]) | (portion.withheld > 0)
