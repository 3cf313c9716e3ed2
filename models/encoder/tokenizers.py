"""Tokenizers cut a sample into patches, without parameters, and embed a patch's values.

Each has `patchify`, `unpatchify`, `embed` and `place_code(dim, positions)`; nothing after them knows what kind of data
it was.

Legend: B batch, C channels, D H W voxels or pixels, N patches, P values per patch, K place coordinates, M points
with F values each (3 coordinates, then features), G groups of k points, E width of the encoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from models.encoder.band_groups import BandGroups, BandGroupTokenizer
from models.encoder.batch_norm import SyncedBatchNorm1d
from models.encoder.cutting import coordinates, cut, grid_of, join
from models.encoder.grid_2d_3d import Grid2D3D, Grid2D3DTokenizer
from models.encoder.patch_resize import project_patches
from models.encoder.patches import Patches
from models.encoder.point_ops import farthest_point_sampling, nearest_neighbours, pointnet2_sampling
from models.encoder.positions import (
    BandPositions,
    PointPositions,
    PositionSettings,
    Projections,
    WavePositions,
    Waves,
    build_grid_positions,
)
from models.encoder.projections import ProjectedPositions


@dataclass(frozen=True)
class Grid:
    """Square or cubic patches with all channels inside one token: X-ray, CT, RGB (ViT, MAE)."""

    kind: Literal["grid"] = "grid"
    patch: tuple[int, ...] = (16, 16)
    """Patch size in pixels (y, x) or voxels (z, y, x); as many numbers as the data has axes."""

    def __post_init__(self) -> None:
        if len(self.patch) not in (2, 3) or min(self.patch) < 1:
            raise ValueError(f"patch: found {list(self.patch)}, expected two or three sizes of at least 1.")


@dataclass(frozen=True)
class Bands:
    """One token per band and patch, one projection shared by all bands: multispectral (ChannelViT)."""

    kind: Literal["bands"] = "bands"
    patch: tuple[int, int] = (8, 8)
    """Patch size in pixels (y, x)."""


@dataclass(frozen=True)
class Groups:
    """Groups of neighbouring points around farthest-point centres, embedded by a small PointNet (Point-MAE)."""

    kind: Literal["groups"] = "groups"
    num_groups: int = 64
    """Centres per cloud; Point-MAE takes 64 for 1024 points."""
    group_size: int = 32
    """Nearest points per centre."""
    widths: tuple[int, int, int] = (128, 256, 512)
    """Of the PointNet that embeds a group: its two layers per point and the one after the group's maximum has joined.
    At Point-MAE's size it takes half of the compute; a narrow encoder should have narrow ones."""
    sampling: Literal["farthest", "pointnet2"] = "farthest"
    """How centres are chosen. farthest: the textbook's farthest points. pointnet2: as the CUDA operation of Point-MAE's
    release, which passes over points near the origin: for its published weights."""


TokenizerSettings = Grid | Bands | BandGroups | Groups | Grid2D3D


class GridTokenizer(nn.Module):
    """values: (p_row, p_col, channel) order as in MAE, with depth first in 3-D; place: grid coordinates."""

    def __init__(self, patch: Sequence[int], num_channels: int, width: int) -> None:
        super().__init__()
        self.patch, self.num_channels = tuple(patch), num_channels
        self.stored = self.patch  # the size of the kernel; `patch` may be another one, see flexible_patches
        self.num_values = math.prod(patch) * num_channels
        self.project = nn.Linear(self.num_values, width)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def patchify(self, x: Tensor, known: Tensor | None = None) -> Patches:
        """x B C (D) H W, known likewise -> Patches. Raises ValueError when the patch does not divide the size."""
        grid = grid_of(x.shape[2:], self.patch)
        place = coordinates(grid, x.device).expand(len(x), -1, -1)
        return Patches(cut(x, grid, self.patch), place, None if known is None else cut(known, grid, self.patch), grid)

    def unpatchify(self, values: Tensor, size: Sequence[int]) -> Tensor:
        """values B N P -> B C (D) H W of that size; the inverse of patchify."""
        return join(values, grid_of(size, self.patch), self.patch, self.num_channels)

    def embed(self, values: Tensor, place: Tensor | None = None) -> Tensor:
        """B N P -> B N E, wherever it is"""
        return project_patches(values, self.project, self.stored, self.patch)

    def place_code(self, dim: int, positions: PositionSettings | None = None) -> nn.Module:
        """Fixed sines and cosines unless the settings say otherwise."""
        return build_grid_positions(dim, len(self.patch), positions)


class BandTokenizer(nn.Module):
    """values: the pixels of one band; place: (band, y, x)."""

    def __init__(self, patch: Sequence[int], num_channels: int, width: int) -> None:
        super().__init__()
        self.patch, self.num_channels = tuple(patch), num_channels
        self.stored = self.patch  # the size of the kernel; `patch` may be another one, see flexible_patches
        self.num_values = math.prod(patch)
        self.project = nn.Linear(self.num_values, width)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        self.channels: tuple[int, ...] = tuple(range(num_channels))

    def read_channels(self, channels: Sequence[int]) -> None:
        """Say which of the encoder's channels the data has, in the data's order. Default: all, in order."""
        if max(channels) >= self.num_channels or min(channels) < 0:
            raise ValueError(f"channels {list(channels)}: the encoder knows 0 to {self.num_channels - 1}.")
        self.channels = tuple(channels)

    def patchify(self, x: Tensor, known: Tensor | None = None) -> Patches:
        """x B C H W with C = len(channels), known likewise -> Patches of C * n, band by band."""
        if x.shape[1] != len(self.channels):
            raise ValueError(f"found {x.shape[1]} bands, expected {len(self.channels)}.")
        grid = grid_of(x.shape[2:], self.patch)
        yx = coordinates(grid, x.device)                                    # n 2
        band = torch.tensor(self.channels, device=x.device, dtype=yx.dtype)
        place = torch.cat([band.repeat_interleave(len(yx))[:, None], yx.repeat(len(band), 1)], 1)   # C*n 3
        return Patches(self._cut(x, grid), place.expand(len(x), -1, -1),
                       None if known is None else self._cut(known, grid), (len(self.channels), *grid))

    def unpatchify(self, values: Tensor, size: Sequence[int]) -> Tensor:
        """values B C*n p*p -> B C H W"""
        batch = values.shape[0]
        grid = grid_of(size, self.patch)
        joined = join(values.reshape(batch * len(self.channels), math.prod(grid), -1), grid, self.patch, 1)
        return joined.reshape(batch, len(self.channels), *size)

    def embed(self, values: Tensor, place: Tensor | None = None) -> Tensor:
        """B N P -> B N E, wherever it is"""
        return project_patches(values, self.project, self.stored, self.patch)

    def place_code(self, dim: int, positions: PositionSettings | None = None) -> nn.Module:
        """A code of (y, x), sines and cosines unless the settings say otherwise, plus a learnt code per band."""
        return BandPositions(dim, self.num_channels, positions)

    def _cut(self, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        return cut(x.reshape(-1, 1, *x.shape[2:]), grid, self.patch).reshape(len(x), -1, math.prod(self.patch))


class GroupTokenizer(nn.Module):
    """values: k points relative to the centre, never scaled, each with its features behind; place: the centre
    (Point-MAE, section 3.1)."""

    def __init__(self, settings: Groups, num_channels: int, width: int) -> None:
        super().__init__()
        if num_channels < 3:
            raise ValueError(f"found {num_channels} channels, expected x, y, z and features: groups are of points.")
        self.num_groups, self.group_size, self.num_channels = settings.num_groups, settings.group_size, num_channels
        self.sampling = settings.sampling
        self.num_values = settings.group_size * num_channels
        self.num_coordinates = settings.group_size * 3
        first, second, third = settings.widths
        self.point = nn.ModuleList([nn.Linear(num_channels, first), SyncedBatchNorm1d(first), nn.Linear(first, second)])
        self.group = nn.ModuleList([nn.Linear(2 * second, third), SyncedBatchNorm1d(third), nn.Linear(third, width)])

    def patchify(self, x: Tensor, known: Tensor | None = None) -> Patches:
        """x B M F -> Patches of G groups. Where `known` says that points are missing (B M F bool), none of them becomes
        a centre or a neighbour; a cloud with fewer points than groups has groups without any known value."""
        if x.shape[1] < max(self.num_groups, self.group_size) or x.shape[2] != self.num_channels:
            raise ValueError(f"found clouds of {x.shape[1]} points with {x.shape[2]} values, expected at least "
                             f"num_groups {self.num_groups} and group_size {self.group_size} points with "
                             f"{self.num_channels} values. Ingest more points per sample or make the groups smaller.")
        places, usable = x[..., :3], None if known is None else known[..., :3].all(-1)
        centre = _gather_points(places, self.sample(places, self.num_groups, usable))                # B G 3
        index = nearest_neighbours(centre, places, self.group_size, usable)  # B G k
        near = _gather_points(x, index.flatten(1)).reshape(*index.shape, -1)                         # B G k F
        relative = near[..., :3] - centre[:, :, None]
        near = relative if near.shape[-1] == 3 else torch.cat([relative, near[..., 3:]], -1)
        return Patches(near.flatten(2), centre, None if known is None else self._known(known, index))

    def sample(self, places: Tensor, num: int, usable: Tensor | None = None) -> Tensor:
        """Indices of centres, B num into places B M 3. Missing points lie at 0, where pointnet2 takes none."""
        if self.sampling == "pointnet2":
            return pointnet2_sampling(places, num)
        return farthest_point_sampling(places, num, usable=usable)

    def _known(self, known: Tensor, index: Tensor) -> Tensor:
        """known B M F, index B G k -> B G k*F: nothing of the groups beyond a cloud's number of points."""
        count = known[..., :3].all(-1).sum(1, keepdim=True)                  # B 1
        real = torch.arange(index.shape[1], device=index.device) < count     # B G
        near = _gather_points(known, index.flatten(1)).reshape(*index.shape, -1)                     # B G k F
        return (near & real[:, :, None, None]).flatten(2)

    def unpatchify(self, values: Tensor, place: Tensor) -> Tensor:
        """values B N P with features or without, place B N 3 -> the points themselves, B N*k F or B N*k 3."""
        points = values.reshape(*values.shape[:2], self.group_size, -1)
        places = points[..., :3] + place[:, :, None]
        return torch.cat([places, points[..., 3:]], -1).flatten(1, 2)

    def embed(self, values: Tensor, place: Tensor | None = None) -> Tensor:
        """B N P -> B N E, wherever it is: a PointNet with one global-to-local step."""
        batch, count = values.shape[:2]
        x = values.reshape(-1, self.num_channels)                            # B*N*k F
        first, norm, second = self.point
        x = second(norm(first(x)).relu()).reshape(batch * count, self.group_size, -1)       # B*N k second
        x = torch.cat([x.amax(1, keepdim=True).expand_as(x), x], -1)         # B*N k 2*second
        first, norm, second = self.group
        x = second(norm(first(x).flatten(0, 1)).relu())                      # B*N*k E
        return x.reshape(batch * count, self.group_size, -1).amax(1).reshape(batch, count, -1)

    def place_code(self, dim: int, positions: PositionSettings | None = None) -> nn.Module:
        """A small network of the centre; with `waves`, of its sines and cosines; with `projections`, an image's."""
        if isinstance(positions, Waves):
            return WavePositions(dim)
        if isinstance(positions, Projections):
            return ProjectedPositions(dim, positions)
        if positions is not None:
            raise ValueError(f"positions {positions.kind} are for grids; groups of points take a network of their "
                             "centres. Leave `positions` out, or take waves or projections.")
        return PointPositions(dim)


Tokenizer = GridTokenizer | BandTokenizer | BandGroupTokenizer | GroupTokenizer | Grid2D3DTokenizer

ByChannel = BandTokenizer | BandGroupTokenizer
"""Those that know their channels one by one: data may have some of them, in any order (`read_channels`)."""


def build_tokenizer(settings: TokenizerSettings, num_channels: int, width: int) -> Tokenizer:
    """The module that these settings describe."""
    match settings:
        case Grid():
            return GridTokenizer(settings.patch, num_channels, width)
        case Bands():
            return BandTokenizer(settings.patch, num_channels, width)
        case BandGroups():
            return BandGroupTokenizer(settings, num_channels, width)
        case Groups():
            return GroupTokenizer(settings, num_channels, width)
        case Grid2D3D():
            return Grid2D3DTokenizer(settings, num_channels, width)


def _gather_points(x: Tensor, index: Tensor) -> Tensor:
    """x B M F, index B n -> B n F"""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))
