"""Images and volumes in one encoder: a projection and a position code for each, all behind them shared (Uni4Eye, Cai et
al. 2022, "Uni4Eye: Unified 2D and 3D Self-supervised Pre-training", section 2).

Legend: B batch, C channels, D H W voxels or pixels, N patches, P values per patch, K place coordinates (2 or 3),
E width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from models.encoder.cutting import coordinates, cut, grid_of, join
from models.encoder.patches import Patches
from models.encoder.positions import (
    GridAndGroup,
    ImageAndVolume,
    PositionSettings,
    Projections,
    Table,
    Waves,
    build_grid_positions,
)


@dataclass(frozen=True)
class Grid2D3D:
    """Square patches of images and cubic ones of volumes, whichever comes; all channels inside one token (Uni4Eye)."""

    kind: Literal["grid_2d_3d"] = "grid_2d_3d"
    patch: tuple[int, int] = (16, 16)
    """Patch size in pixels (y, x), for images."""
    cube: tuple[int, int, int] = (16, 16, 16)
    """Patch size in voxels (z, y, x), for volumes."""

    def __post_init__(self) -> None:
        if min(self.patch + self.cube) < 1:
            raise ValueError(f"patch and cube: found {list(self.patch)} and {list(self.cube)}, expected sizes of at "
                             "least 1.")


class Grid2D3DTokenizer(nn.Module):
    """values: as in a grid, (p_row, p_col, channel) with depth first in volumes; place: (y, x) or (z, y, x)."""

    def __init__(self, settings: Grid2D3D, num_channels: int, width: int) -> None:
        super().__init__()
        self.patch, self.cube, self.num_channels = settings.patch, settings.cube, num_channels
        self.num_values = self.num_values_of(2)
        self.image = nn.Linear(self.num_values_of(2), width)
        self.volume = nn.Linear(self.num_values_of(3), width)
        for layer in (self.image, self.volume):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def patch_of(self, axes: int) -> tuple[int, ...]:
        """Patch size for data of two or three axes."""
        return self.patch if axes == 2 else self.cube

    def num_values_of(self, axes: int) -> int:
        """Values of a patch of such data; `num_values` is that of images."""
        return math.prod(self.patch_of(axes)) * self.num_channels

    def patchify(self, x: Tensor, known: Tensor | None = None) -> Patches:
        """x B C (D) H W, known likewise -> Patches. Raises ValueError when the patch does not divide the size."""
        patch = self.patch_of(x.dim() - 2)
        grid = grid_of(x.shape[2:], patch)
        place = coordinates(grid, x.device).expand(len(x), -1, -1)
        return Patches(cut(x, grid, patch), place, None if known is None else cut(known, grid, patch), grid)

    def unpatchify(self, values: Tensor, size: Sequence[int]) -> Tensor:
        """values B N P -> B C (D) H W of that size; the inverse of patchify."""
        patch = self.patch_of(len(size))
        return join(values, grid_of(size, patch), patch, self.num_channels)

    def embed(self, values: Tensor, place: Tensor | None = None) -> Tensor:
        """values B N P, place B N K -> B N E; K tells images from volumes, and where it is not given, P does."""
        axes = (2 if values.shape[-1] == self.num_values else 3) if place is None else place.shape[-1]
        out: Tensor = (self.image if axes == 2 else self.volume)(values)
        return out

    def place_code(self, dim: int, positions: PositionSettings | None = None) -> nn.Module:
        """Fixed sines and cosines of both unless the settings say otherwise. Raises ValueError for one table for
        both."""
        return PlacesOfBoth(dim, positions)


class PlacesOfBoth(nn.Module):
    """One code for places of images, another for places of volumes."""

    def __init__(self, dim: int, positions: PositionSettings | None) -> None:
        super().__init__()
        if isinstance(positions, Table | GridAndGroup | Waves | Projections):
            raise ValueError(f"positions {positions.kind} cannot serve both images and volumes. Expected kind: "
                             "image_and_volume, with a table for either.")
        both = (positions if isinstance(positions, ImageAndVolume)
                else ImageAndVolume(image=positions, volume=positions))
        self.image = build_grid_positions(dim, 2, both.image)
        self.volume = build_grid_positions(dim, 3, both.volume)

    def forward(self, place: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """place B N K -> B N E"""
        code: Tensor = (self.image if place.shape[-1] == 2 else self.volume)(place, grid)
        return code

