"""Places in space, projected to planes, so that a point gets the position code that an encoder of images has learnt for
where it falls (Tang et al. 2024, "Any2Point", section 3.2: 3D-to-any virtual projection).

Legend: B batch, N patches, W views, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from models.encoder.positions import GridPositions, Projections, Table, TablePositions

VIEWS = ((0.0, 0.0), (60.0, 0.0), (120.0, 0.0), (30.0, 45.0), (90.0, 45.0), (150.0, 45.0))
"""Azimuth and elevation in degrees from which space is looked at: no two are each other's mirror image."""


class ProjectedPositions(nn.Module):
    """The code of a plane, at places that need not be whole, in the mean over views."""

    def __init__(self, dim: int, settings: Projections) -> None:
        super().__init__()
        self.grid = settings.grid
        self.plane = (TablePositions(dim, settings.plane) if isinstance(settings.plane, Table) else
                      GridPositions(dim, 2, settings.plane is not None and settings.plane.first_axis_first))

    def forward(self, place: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """place B N 3 within the unit sphere -> B N D"""
        at = project(place) * place.new_tensor([size - 1 for size in self.grid])                # B W N 2
        code: Tensor = (between(self.plane.rows, self.grid, at) if isinstance(self.plane, TablePositions)
                        else self.plane(at.flatten(0, 1)).unflatten(0, at.shape[:2]))           # B W N D
        return code.mean(1)


def project(place: Tensor) -> Tensor:
    """place B N 3, (x, y, z) -> B W N 2, (y, x) of each view's plane, 0 to 1 over the unit sphere; what lies outside is
    moved to the edge."""
    flat = torch.einsum("bnk,wak->bwna", place, place.new_tensor(_AXES))
    return (flat.clamp(-1, 1) + 1) / 2


def between(rows: Tensor, grid: tuple[int, int], at: Tensor) -> Tensor:
    """A table at places between its rows, bilinear.

    Args:
        rows: grid[0] * grid[1] D, first axis slowest. at: ... 2, (y, x) from 0 to the last row and column.

    Returns:
        ... D
    """
    size = at.new_tensor(grid)
    low = at.floor().minimum(size - 1)
    high, share = (low + 1).minimum(size - 1), at - low

    def corner(y: Tensor, x: Tensor) -> Tensor:
        return rows[(y * grid[1] + x).long()]

    (y0, x0), (y1, x1), (down, right) = low.unbind(-1), high.unbind(-1), share[..., None, :].unbind(-1)
    top = corner(y0, x0) * (1 - right) + corner(y0, x1) * right
    return top * (1 - down) + (corner(y1, x0) * (1 - right) + corner(y1, x1) * right) * down


def _axes(azimuth: float, elevation: float) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Downwards and rightwards in a view's plane, as directions in space; z is up."""
    turn, tilt = math.radians(azimuth), math.radians(elevation)
    right = (-math.sin(turn), math.cos(turn), 0.0)
    down = (math.cos(turn) * math.sin(tilt), math.sin(turn) * math.sin(tilt), -math.cos(tilt))
    return down, right


_AXES = [_axes(*view) for view in VIEWS]
