"""One token per group of bands and patch, each group with a projection of its own (SatMAE, Cong et al. 2022).

Groups may be of unequal size. A patch has as many values as the widest group needs; those beyond a group's own bands
are 0 and marked as not known, so they are in no target and in no statistic.

Legend: B batch, C bands, H W rows and columns, N patches, P values per patch, K place coordinates, G groups,
W bands of the widest group, n places of the grid, E width of the encoder, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.encoder.cutting import coordinates, cut, grid_of, join
from models.encoder.patches import Patches
from models.encoder.positions import (
    GridAndGroup,
    NoCode,
    NoPositions,
    PositionSettings,
    SinCos,
    Table,
    build_grid_positions,
    sin_cos,
)


@dataclass(frozen=True)
class BandGroups:
    """One token per group of bands and patch: multispectral (SatMAE)."""

    kind: Literal["band_groups"] = "band_groups"
    groups: tuple[tuple[int, ...], ...] = ()
    """Which bands are together, by their number in the data's contract, counted from 0; each band in one group.
    SatMAE's for B2 B3 B4 B5 B6 B7 B8 B8A B11 B12: [[0, 1, 2, 6], [3, 4, 5, 7], [8, 9]]."""
    patch: tuple[int, int] = (8, 8)
    """Patch size in pixels (y, x)."""
    channel_dim: int | None = None
    """How many numbers of a position code say which group, in encoder and decoder; null: a quarter of each one's width.
    `positions: {kind: grid_and_group, ...}` sets it for one of them."""

    def __post_init__(self) -> None:
        bands = sorted(band for group in self.groups for band in group)
        if not self.groups or not all(self.groups) or bands != list(range(len(bands))):
            raise ValueError(f"groups: found {[list(group) for group in self.groups]}, expected lists that name every "
                             "band once, counted from 0, such as [[0, 1, 2, 6], [3, 4, 5, 7], [8, 9]].")
        GridAndGroup(channel_dim=self.channel_dim)  # refuses what is no width


class BandGroupTokenizer(nn.Module):
    """values: (band of the group, p_row, p_col), filled up to the widest group; place: (group, y, x)."""

    bands: Tensor
    slots: Tensor
    own: Tensor

    def __init__(self, settings: BandGroups, num_channels: int, width: int) -> None:
        super().__init__()
        self.groups, self.patch, self.channel_dim = settings.groups, settings.patch, settings.channel_dim
        self.num_channels = num_channels
        found = sum(map(len, self.groups))
        if found != num_channels:
            raise ValueError(f"groups name {found} bands, expected {num_channels}, as many as the data has. Name each "
                             "once, or ingest the bands that are named.")
        area = math.prod(self.patch)
        widest = max(map(len, self.groups))
        self.num_values = widest * area
        self.sizes = tuple(len(group) * area for group in self.groups)
        """Values of a patch of each group."""
        self.project = nn.ModuleList(nn.Linear(size, width) for size in self.sizes)
        for layer in self.project:
            nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        filled = [list(group) + [0] * (widest - len(group)) for group in self.groups]
        slots = [row * widest + group.index(band) for band in range(num_channels)
                 for row, group in enumerate(self.groups) if band in group]
        self.register_buffer("bands", torch.tensor(filled).flatten(), persistent=False)             # G*W
        self.register_buffer("slots", torch.tensor(slots), persistent=False)                        # C into G*W
        own = torch.tensor([[i < len(group) for i in range(widest)] for group in self.groups])
        self.register_buffer("own", own, persistent=False)                                          # G W
        self.unequal = not bool(own.all())
        self.channels: tuple[int, ...] = tuple(range(num_channels))

    def read_channels(self, channels: Sequence[int]) -> None:
        """Say which of the encoder's bands the data has, in the data's order. Default: all, in order. Bands that are
        not there count as unknown: as 0 beside others of their group, and a group without any is dropped."""
        if len(set(channels)) != len(channels) or not 0 <= min(channels) <= max(channels) < self.num_channels:
            raise ValueError(f"channels {list(channels)}: expected numbers from 0 to {self.num_channels - 1}, each "
                             "once.")
        self.channels = tuple(channels)

    def patchify(self, x: Tensor, known: Tensor | None = None) -> Patches:
        """x B C H W with C = len(channels), known likewise -> Patches of G * n, group by group. Raises ValueError when
        the patch does not divide the size, or the bands are not as many as expected."""
        if x.shape[1] != len(self.channels):
            raise ValueError(f"found {x.shape[1]} bands, expected {len(self.channels)}.")
        grid = grid_of(x.shape[2:], self.patch)
        yx = coordinates(grid, x.device)                                    # n 2
        group = torch.arange(len(self.groups), device=x.device, dtype=yx.dtype)
        place = torch.cat([group.repeat_interleave(len(yx))[:, None], yx.repeat(len(group), 1)], 1)     # G*n 3
        if known is None and (self.unequal or len(self.channels) < self.num_channels):
            known = torch.ones_like(x, dtype=torch.bool)
        return Patches(self._cut(self._in_order(x), grid), place.expand(len(x), -1, -1),
                       None if known is None else self._cut(self._in_order(known), grid), (len(group), *grid))

    def unpatchify(self, values: Tensor, size: Sequence[int]) -> Tensor:
        """values B G*n P -> B C H W: each band from its own group."""
        grid = grid_of(size, self.patch)
        split = values.unflatten(1, (len(self.groups), -1)).unflatten(3, (self.own.shape[1], -1))       # B G n W p*p
        bands = split.transpose(2, 3).flatten(1, 2)[:, self.slots[list(self.channels)]]                 # B C n p*p
        return join(bands.flatten(0, 1), grid, self.patch, 1).reshape(len(values), len(self.channels), *size)

    def embed(self, values: Tensor, place: Tensor) -> Tensor:
        """values B N P, place B N 3 -> B N E, by each group's own projection. All projections run on all patches: they
        are a hundredth of a block's work, and shapes stay the same from step to step."""
        group = place[..., :1].long()                                       # B N 1
        parts = [layer(values[..., :size]) for layer, size in zip(self.project, self.sizes, strict=True)]
        return pick_group(parts, group)

    def place_code(self, dim: int, positions: PositionSettings | None = None) -> nn.Module:
        """Where on the grid, beside which group. Raises ValueError for positions of another kind of data."""
        match positions:
            case NoPositions():
                return NoCode(dim)
            case None:
                both = GridAndGroup(channel_dim=self.channel_dim)
            case SinCos() | Table():
                both = GridAndGroup(grid=positions, channel_dim=self.channel_dim)
            case GridAndGroup():
                both = positions
            case _:
                raise ValueError(f"positions: found {positions.kind}, expected sin_cos, table, grid_and_group or none "
                                 "for groups of bands. Leave `positions` out.")
        return GroupPositions(dim, len(self.groups), both)

    def _in_order(self, x: Tensor) -> Tensor:
        """The data's bands B C H W at the places that the groups know them by; 0 (or False) where a band is missing."""
        if self.channels == tuple(range(self.num_channels)):
            return x
        out = x.new_zeros(len(x), self.num_channels, *x.shape[2:])
        out[:, list(self.channels)] = x
        return out

    def _cut(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """B C H W -> B G*n P, 0 (or False) where a group has no more bands."""
        cells = cut(x.flatten(0, 1)[:, None], grid, self.patch).unflatten(0, (len(x), -1))              # B C n p*p
        split = cells[:, self.bands].unflatten(1, self.own.shape) * self.own[:, :, None, None]          # B G W n p*p
        return split.transpose(2, 3).flatten(3).flatten(1, 2)


def pick_group(parts: Sequence[Tensor], group: Tensor) -> Tensor:
    """parts: G tensors B N D, group B N 1 -> B N D: for each patch the tensor of its own group."""
    out = parts[0]
    for i, part in enumerate(parts[1:], start=1):
        out = torch.where(group == i, part, out)
    return out


class GroupPositions(nn.Module):
    """[grid code, code of the group] (SatMAE: the two are put side by side, not added)."""

    def __init__(self, dim: int, num_groups: int, settings: GridAndGroup) -> None:
        super().__init__()
        share = dim // 8 * 2 if settings.channel_dim is None else settings.channel_dim
        if not 2 <= share <= dim - 4:
            raise ValueError(f"channel_dim: found {share}, expected 2 to {dim - 4}, so that the width {dim} has room "
                             "for rows and columns too. Give positions: {kind: grid_and_group, channel_dim: ...}.")
        self.grid = build_grid_positions(dim - share, 2, settings.grid)
        self.rows = nn.Parameter(sin_cos(torch.arange(num_groups), share), requires_grad=settings.learnt)   # G share

    def forward(self, place: Tensor, grid: tuple[int, ...] | None = None) -> Tensor:
        """place B N 3, (group, y, x) -> B N D"""
        return torch.cat([self.grid(place, grid), self.rows[place[..., 0].long()]], -1)
