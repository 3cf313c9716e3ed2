"""Masks of whole cells of several patches (SimMIM, Xie et al. 2022, section 3.1): a hidden patch then has no seen
neighbour on most sides, so that small patches do not make the task easy.

Legend: B batch, N patches, L cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from models.encoder.chance import Chance
from models.encoder.mask_lists import check_ratio, split_cells
from models.encoder.patches import Mask, Patches

_CELLS = 35  # stream of chance


@dataclass(frozen=True)
class CellMasking:
    """Cut the grid into cells, hide a share of them. Each band has cells of its own."""

    kind: Literal["cells"] = "cells"
    ratio: float = 0.6
    """Share of the cells with data that is hidden; the number seen is floor(n * (1 - ratio)), at least one."""
    cell: tuple[int, ...] = (2, 2)
    """Patches per cell along (y, x) or (z, y, x). SimMIM's cells are 32 pixels: 2 patches of 16, or 8 of 4. Where a
    cell does not divide the grid, those at the end are smaller."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if len(self.cell) not in (2, 3) or min(self.cell) < 1:
            raise ValueError(f"cell: found {list(self.cell)}, expected two or three sizes of at least 1.")

    def __call__(self, patches: Patches, chance: Chance) -> Mask:
        """Raises ValueError for patches on no grid."""
        if patches.grid is None:
            raise ValueError("masking cells: found patches on no grid, expected a grid. Take masking block for points.")
        axes = len(self.cell)
        planes = math.prod(patches.grid[:-axes])                             # bands, or 1
        cells = [math.ceil(size / cell) for size, cell in zip(patches.grid[-axes:], self.cell, strict=True)]
        number = torch.zeros(1, dtype=torch.int64, device=patches.place.device)
        for size, cell, count in zip(patches.grid[-axes:], self.cell, cells, strict=True):
            along = torch.arange(size, device=number.device) // cell
            number = (number[:, None] * count + along).flatten()             # in the grid's order, last axis fastest
        plane = torch.arange(planes, device=number.device)[:, None] * math.prod(cells)
        cell_of = (plane + number).flatten().expand(len(patches.place), -1)  # B N
        return split_cells(cell_of, chance.uniform(planes * math.prod(cells), _CELLS), patches.usable(), self.ratio)
