"""Where a stored sample lies in the file that it was read from."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

MOST_AXES = 3
MOST_FRACTIONS = 2 * MOST_AXES + 16
MOST_TEXT = 400
"""Letters of a coordinate system."""


@dataclass(frozen=True)
class Placement:
    """A grid inside a file's own grid: numbers, and the code of a coordinate system. It goes with a sample from the
    reader to whoever writes a mask for the file, and is not stored."""

    shape: tuple[int, ...]
    """Of the file's grid, in the file's order of axes."""
    axes: tuple[int, ...]
    """For every stored axis the file's axis that it runs along."""
    starts: tuple[float, ...]
    """For every stored axis: where its first pixel's middle lies, as an index along the file's axis."""
    steps: tuple[float, ...]
    """For every stored axis: the file's pixels per stored one; negative where it runs backwards."""
    affine: tuple[float, ...] = ()
    """Volumes: 16 numbers, indices of the file to millimetres (RAS), by rows. Scenes: a b c d e f, column and row of
    the file to the coordinate system, the upper left corner being (0, 0). Empty: not known."""
    crs: str = ""
    """Code of the affine's coordinate system (EPSG:32633), or its definition in PROJ's words where no list has it."""

    def __post_init__(self) -> None:
        if not 2 <= len(self.shape) <= MOST_AXES or sorted(self.axes) != list(range(len(self.shape))):
            raise ValueError("a placement whose axes are not those of its file")
        if len(self.starts) != len(self.axes) or len(self.steps) != len(self.axes) or min(self.shape) < 1:
            raise ValueError("a placement without a start and a step for every axis")
        numbers = (*self.starts, *self.steps, *self.affine)
        if not all(map(math.isfinite, numbers)) or 0.0 in self.steps or len(self.affine) not in (0, 6, 16):
            raise ValueError("a placement with numbers that place nothing")
        if len(self.crs) > MOST_TEXT or not self.crs.isprintable():
            raise ValueError("a placement whose coordinate system is no short code")


def described(placement: Placement) -> dict[str, Any]:
    """What JSON holds of a placement, which `told` makes one again. The fractions, 22 of a volume, go as they lie in
    memory: to write and read them as decimals would cost as much as all else that is said of a sample."""
    fractions = (*placement.starts, *placement.steps, *placement.affine)
    return {"shape": placement.shape, "axes": placement.axes, "crs": placement.crs,
            "fractions": struct.pack(f"<{len(fractions)}d", *fractions).hex()}


def told(said: Any) -> Placement | None:
    """A placement from JSON, as a reading process tells it. Raises ValueError, KeyError or TypeError."""
    if said is None:
        return None
    packed = bytes.fromhex(said["fractions"])
    if len(packed) > 8 * MOST_FRACTIONS or len(packed) % 8:
        raise ValueError("a placement whose fractions are not those of a grid")
    fractions = struct.unpack(f"<{len(packed) // 8}d", packed)
    axes = tuple(map(int, said["axes"]))
    num = len(axes)
    return Placement(tuple(map(int, said["shape"])), axes, fractions[:num], fractions[num:2 * num],
                     fractions[2 * num:], crs=str(said["crs"]))
