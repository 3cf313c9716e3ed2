"""Position codes: functions of place, so that an encoder and a decoder each make their own width, at any size.

Legend: B batch, N patches, K place coordinates, D width, T rows of a table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SinCos:
    """Fixed sines and cosines (MAE); no parameters, any size."""

    kind: Literal["sin_cos"] = "sin_cos"
    first_axis_first: bool = False
    """Whose sines come first in the code: the last axis' (MAE, MONAI) or the first one's (Hi-End-MAE)."""


@dataclass(frozen=True)
class Table:
    """One row per place of a grid: positions that were learnt, or read from a published file."""

    kind: Literal["table"] = "table"
    grid: tuple[int, ...] = ()
    """Patches along each axis, first axis first."""
    learnt: bool = True
    """Train the rows; False keeps them as they are."""
    channelvit_resize: bool = False
    """Resize as ChannelViT's release does, which is not the identity at the native size: for its published weights."""

    def __post_init__(self) -> None:
        if len(self.grid) not in (2, 3) or min(self.grid) < 1:
            raise ValueError(f"grid: found {list(self.grid)}, expected two or three sizes of at least 1.")


@dataclass(frozen=True)
class NoPositions:
    """Patches do not say where they are."""

    kind: Literal["none"] = "none"


@dataclass(frozen=True)
class GridAndGroup:
    """For groups of bands: some numbers of the code say where on the grid, the others which group (SatMAE)."""

    kind: Literal["grid_and_group"] = "grid_and_group"
    grid: SinCos | Table = SinCos()
    """How the place on the grid is coded."""
    channel_dim: int | None = None
    """How many numbers say which group; null: a quarter of the width, as in SatMAE's large encoder and its decoders."""
    learnt: bool = False
    """Train the codes of the groups, which begin as sines and cosines; False keeps them as they are."""

    def __post_init__(self) -> None:
        if self.channel_dim is not None and (self.channel_dim < 2 or self.channel_dim % 2):
            raise ValueError(f"channel_dim: found {self.channel_dim}, expected an even number: half sines, half "
                             "cosines.")


@dataclass(frozen=True)
class ImageAndVolume:
    """For encoders that take images and volumes (Uni4Eye): how the places of each are coded."""

    kind: Literal["image_and_volume"] = "image_and_volume"
    image: SinCos | Table | NoPositions | None = None
    """Of images; null: sines and cosines."""
    volume: SinCos | Table | NoPositions | None = None
    """Of volumes, likewise. The release of Uni4Eye++ has none: its table is left at zero."""


@dataclass(frozen=True)
class Waves:
    """For points: fixed sines and cosines of the centre, then a network of two layers (PCP-MAE)."""

    kind: Literal["waves"] = "waves"


@dataclass(frozen=True)
class Projections:
    """For points: the mean over six views of the code of an image's places."""

    kind: Literal["projections"] = "projections"
    grid: tuple[int, int] = (14, 14)
    """Patches (y, x) of the images whose places the code is for; a cloud within the unit sphere fills it."""
    plane: SinCos | Table | None = None
    """How places of the image are coded; null: sines and cosines."""

    def __post_init__(self) -> None:
        if min(self.grid) < 1 or isinstance(self.plane, Table) and self.plane.grid != self.grid:
            raise ValueError(f"projections: found grid {list(self.grid)}, expected two sizes of at least 1, the same "
                             "as the table's where there is one.")


PositionSettings = SinCos | Table | NoPositions | GridAndGroup | ImageAndVolume | Waves | Projections


def sin_cos(coordinate: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """coordinate ... -> ... dim: sines, then cosines, at dim / 2 geometric frequencies (Vaswani et al. 2017)."""
    half = dim // 2
    frequency = temperature ** (-torch.arange(half, device=coordinate.device, dtype=torch.float32) / half)
    angle = coordinate.float()[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class GridPositions(nn.Module):
    """Fixed sines and cosines of the last `axes` coordinates; no parameters.

    The width is shared equally by the axes, the last one (x) first as in MAE (its code puts the column first); what is
    left over after rounding to even shares is 0.
    """

    step: tuple[float, ...] | None = None
    """Length of a patch along each axis over the length that the encoder was built for; None: 1 (flexible_patches)."""

    def __init__(self, dim: int, axes: int, first_axis_first: bool = False) -> None:
        super().__init__()
        self.dim, self.axes, self.first_axis_first = dim, axes, first_axis_first
        self.share = dim // (2 * axes) * 2
        if self.share < 2:
            raise ValueError(f"width {dim} is too small for positions on {axes} axes; expected at least {2 * axes}.")

    def forward(self, place: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """place B N K -> B N D"""
        axes = place[..., -self.axes:]
        if self.step is not None:
            axes = (axes + 0.5) * axes.new_tensor(self.step) - 0.5          # the centre of the patch, in stored patches
        if not self.first_axis_first:
            axes = axes.flip(-1)                                            # x, y(, z)
        code = sin_cos(axes, self.share).flatten(-2)                        # B N axes*share
        return nn.functional.pad(code, (0, self.dim - code.shape[-1]))


class TablePositions(nn.Module):
    """Rows of a table, resized where the data's grid is another one."""

    def __init__(self, dim: int, settings: Table) -> None:
        super().__init__()
        self.settings = settings
        self.rows = nn.Parameter(torch.zeros(math.prod(settings.grid), dim), requires_grad=settings.learnt)
        nn.init.normal_(self.rows, std=0.02)

    def forward(self, place: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """place B N K with whole coordinates, grid: patches per axis (None: the table's own) -> B N D"""
        axes = len(self.settings.grid)
        wanted = self.settings.grid if grid is None else grid[-axes:]
        native = self.settings.channelvit_resize and grid is not None and self._taken_for_native(grid)
        if native and grid is not None and math.prod(grid[:-axes]) == 1:
            rows: Tensor = self.rows
        elif native and place.shape[1] == len(self.rows):
            # Several channels at a smaller size: ChannelViT's release looks at the number of tokens, not at the grid
            return self.rows.expand(len(place), -1, -1)
        else:
            overshoot = 0.1 if self.settings.channelvit_resize and grid is not None else 0.0
            rows = resize_rows(self.rows, self.settings.grid, wanted, overshoot)
        index = place[..., -axes].long()
        for axis in range(1, axes):
            index = index * wanted[axis] + place[..., axis - axes].long()
        return rows[index]

    def _taken_for_native(self, grid: tuple[int, ...]) -> bool:
        return math.prod(grid) == len(self.rows) and grid[-1] == grid[-2]


class NoCode(nn.Module):
    """Zeros for every place."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, place: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """place B N K -> B N D"""
        return place.new_zeros(*place.shape[:-1], self.dim, dtype=torch.float32)


class BandPositions(nn.Module):
    """Grid positions plus a learnt code per channel (ChannelViT, Bao et al. 2024, section 3.1)."""

    def __init__(self, dim: int, num_channels: int, positions: PositionSettings | None = None) -> None:
        super().__init__()
        self.grid = build_grid_positions(dim, 2, positions)
        self.channel = nn.Embedding(num_channels, dim)
        nn.init.normal_(self.channel.weight, std=0.02)

    def forward(self, place: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """place B N 3, (channel, y, x) -> B N D"""
        code: Tensor = self.grid(place, grid) + self.channel(place[..., 0].long())
        return code


class PointPositions(nn.Sequential):
    """A small network of the group's centre (Point-MAE, Pang et al. 2022, section 3.2): 3 -> 128 -> D."""

    def __init__(self, dim: int, hidden: int = 128) -> None:
        super().__init__(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, place: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """place B N 3 -> B N D"""
        code: Tensor = super().forward(place)
        return code


class WavePositions(nn.Module):
    """Sines and cosines of a centre, which can be predicted, and a network behind them (PCP-MAE, Zhang et al. 2024,
    section 3): D -> D -> D."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.waves = GridPositions(dim, 3, first_axis_first=True)
        self.network = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, place: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """place B N 3 -> B N D"""
        code: Tensor = self.network(self.waves(place))
        return code


def build_grid_positions(dim: int, axes: int, settings: PositionSettings | None) -> nn.Module:
    """The module for patches on a grid of `axes` axes. Raises ValueError for a table with other axes."""
    match settings:
        case None:
            return GridPositions(dim, axes)
        case SinCos():
            return GridPositions(dim, axes, settings.first_axis_first)
        case Table():
            if len(settings.grid) != axes:
                raise ValueError(f"positions.grid: found {list(settings.grid)}, expected {axes} sizes, as `patch` has.")
            return TablePositions(dim, settings)
        case NoPositions():
            return NoCode(dim)
        case GridAndGroup():
            raise ValueError("positions grid_and_group are for tokenizer band_groups; nothing else has groups of "
                             "bands. Leave `positions` out.")
        case ImageAndVolume():
            raise ValueError("positions image_and_volume are for tokenizer grid_2d_3d; nothing else takes both. Give "
                             "one kind of positions.")
        case Waves() | Projections():
            raise ValueError(f"positions {settings.kind} are for groups of points. Leave `positions` out, or take "
                             "sin_cos.")


def resize_rows(rows: Tensor, grid: tuple[int, ...], wanted: tuple[int, ...], overshoot: float = 0.0) -> Tensor:
    """A table for another grid: bicubic in 2-D, trilinear in 3-D, corners not aligned (MAE's fine-tuning, DeiT).

    Args:
        rows: T D, first axis of the grid slowest.
        overshoot: added to the wanted sizes when the scale is computed, as ChannelViT and DINO do (0.1); the sizes
            themselves stay. Not the identity, even where `wanted` equals `grid`.
    """
    if grid == wanted and not overshoot:
        return rows
    maps = rows.float().reshape(1, *grid, -1).movedim(-1, 1)                 # 1 D *grid
    mode = "bicubic" if len(grid) == 2 else "trilinear"
    if overshoot:
        scale = tuple((to + overshoot) / size for to, size in zip(wanted, grid, strict=True))
        maps = nn.functional.interpolate(maps, scale_factor=scale, mode=mode, align_corners=False)
        assert maps.shape[2:] == torch.Size(wanted), (maps.shape, wanted)
    else:
        maps = nn.functional.interpolate(maps, size=wanted, mode=mode, align_corners=False)
    return maps.flatten(2)[0].T.to(rows.dtype)
