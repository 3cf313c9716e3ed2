"""A head that says the class of every pixel or voxel.

Legend: B batch, C channels, D H W voxels (D is absent for images), N patches, n of them at different places, V visible,
E width of the encoder, K classes without the background, F width of a map.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.encoder.patches import Features, Patches, see_all
from models.encoder.transformer import mean_of_valid

LEVELS = 3
"""Most maps between tokens and pixels that take what a block of the encoder gave."""


@dataclass(frozen=True)
class SegmentHead:
    """Tokens back on their grid, then up to the resolution of the sample."""

    kind: Literal["segment"] = "segment"
    design: Literal["pyramid", "linear"] = "pyramid"
    """pyramid: tokens of several blocks and the sample itself meet at rising resolutions, as in UNETR; of points,
    tokens of several blocks are brought to every point, as in Point-MAE. linear: a layer on each token alone, and its
    answers interpolated."""
    width: int = 16
    """pyramid: width of the finest map; each coarser one has twice as much, up to 8 times. A multiple of 8. Of points,
    8 times this is the width of the layer before the last."""
    overlap: float = 1.0
    """Weight of the loss of overlap (1 - soft Dice) beside cross-entropy."""

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise ValueError(f"head.width: found {self.width}, expected a multiple of 8: maps are normalised in groups "
                             "of channels.")
        if self.overlap < 0:
            raise ValueError(f"head.overlap: found {self.overlap}, expected at least 0.")


class SegmentLinear(nn.Module):
    """(Features, Patches, x) -> B K+1 (D) H W: one layer on each token."""

    taps: tuple[int, ...] = ()

    def __init__(self, settings: SegmentHead, width: int, num_classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.output = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def pool(self, features: Features) -> Tensor:
        """-> B E"""
        return mean_of_valid(features.tokens, features.valid)

    def forward(self, features: Features, patches: Patches, x: Tensor) -> Tensor:
        """-> B K+1 (D) H W logits"""
        map_ = on_grid(features.tokens, patches, x.dim() - 2)               # B E grid
        told = self.output(map_.movedim(1, -1)).movedim(-1, 1)
        return resized(told, x.shape[2:])


class SegmentPyramid(nn.Module):
    """(Features, Patches, x) -> B K+1 (D) H W (Hatamizadeh et al. 2022, "UNETR", section 3.1).

    Differs from the paper: maps grow by interpolation and a convolution, not by transposed convolutions, so that any
    patch size will do, axes that differ included; groups of channels are normalised, not whole samples; the widths
    are settings.
    """

    def __init__(self, settings: SegmentHead, width: int, num_classes: int, num_channels: int, patch: tuple[int, ...],
                 depth: int) -> None:
        super().__init__()
        self.settings, self.num_channels = settings, num_channels
        self.num_levels = max(1, math.ceil(math.log2(max(patch))))
        taken = min(LEVELS, self.num_levels - 1, depth - 1)
        self.taps = tuple(round(depth * (i + 1) / (taken + 1)) - 1 for i in range(taken))
        widths = [settings.width * min(2**level, 8) for level in range(self.num_levels + 1)]
        dims = len(patch)
        self.deepest = _conv(width, widths[-1], dims, 1)
        self.skips = nn.ModuleList(_conv(width, widths[level], dims, 1) for level in self._levels_of_taps())
        self.stem = Residual(num_channels, widths[0], dims)
        self.grow = nn.ModuleList(_conv(widths[level + 1], widths[level], dims, 3) for level in range(self.num_levels))
        meets = {0, *self._levels_of_taps()}
        self.mix = nn.ModuleList(Residual(widths[level] * (2 if level in meets else 1), widths[level], dims)
                                 for level in range(self.num_levels))
        self.output = _conv(widths[0], num_classes, dims, 1)

    def _levels_of_taps(self) -> list[int]:
        """The resolution, in halvings, at which each tap joins: early blocks at fine ones."""
        return [1 + i for i in range(len(self.taps))]

    def pool(self, features: Features) -> Tensor:
        """-> B E"""
        return mean_of_valid(features.tokens, features.valid)

    def forward(self, features: Features, patches: Patches, x: Tensor) -> Tensor:
        """-> B K+1 (D) H W logits"""
        if x.shape[1] != self.num_channels:
            raise ValueError(f"found {x.shape[1]} channels, expected {self.num_channels}: a head of design pyramid "
                             "reads the sample itself. Give all that it was tuned on, or tune one of design linear.")
        count = features.tokens.shape[1]
        maps = [on_grid(layer[:, layer.shape[1] - count:], patches, x.dim() - 2) for layer in features.layers]
        y = self.deepest(on_grid(features.tokens, patches, x.dim() - 2))
        grid = y.shape[2:]
        joins = dict(zip(self._levels_of_taps(), zip(self.skips, maps, strict=True), strict=True))
        for level in reversed(range(self.num_levels)):
            size = [max(cells, math.ceil(pixels / 2**level)) for cells, pixels in zip(grid, x.shape[2:], strict=True)]
            y = self.grow[level](resized(y, size))
            if level == 0:
                y = torch.cat([y, self.stem(x)], 1)
            elif level in joins:
                skip, tap = joins[level]
                y = torch.cat([y, resized(skip(tap), size)], 1)
            y = self.mix[level](y)
        told: Tensor = self.output(y)
        return told


class Residual(nn.Module):
    """Two convolutions beside a straight road: B F_in ... -> B F_out ..."""

    def __init__(self, before: int, after: int, dims: int) -> None:
        super().__init__()
        self.first, self.second = _conv(before, after, dims, 3), _conv(after, after, dims, 3)
        self.norms = nn.ModuleList(nn.GroupNorm(8, after) for _ in range(2))
        self.straight = _conv(before, after, dims, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """B F_in (D) H W -> B F_out (D) H W"""
        y = functional.leaky_relu(self.norms[0](self.first(x)), 0.01)
        y = self.norms[1](self.second(y)) + self.straight(x)
        return functional.leaky_relu(y, 0.01)


def on_grid(tokens: Tensor, patches: Patches, dims: int) -> Tensor:
    """Tokens B V E of all patches that hold data, back on the grid they were cut from: B E grid. 0 where no token is;
    the mean over bands where several stand at one place."""
    if patches.grid is None:
        raise ValueError("found groups of points, expected patches of a grid: head segment answers per pixel or voxel.")
    count = patches.values.shape[1]
    if patches.known is None:
        there = tokens.new_ones(len(tokens), count, 1)
    else:
        mask = see_all(patches)
        valid = mask.visible_valid
        real = tokens.new_ones(mask.visible.shape) if valid is None else valid.to(tokens.dtype)          # B V
        index = mask.visible[..., None]
        there = tokens.new_zeros(len(tokens), count, 1).scatter_add(1, index, real[..., None])      # B N 1
        tokens = tokens.new_zeros(len(tokens), count, tokens.shape[-1]).scatter_add(
            1, index.expand_as(tokens), tokens * real[..., None])           # B N E
    places = patches.grid[-dims:]
    bands = count // math.prod(places)
    mean = (tokens.unflatten(1, (bands, -1)).sum(1) / there.unflatten(1, (bands, -1)).sum(1).clamp(min=1))  # B n E
    return mean.transpose(1, 2).unflatten(2, places)


def resized(x: Tensor, size: torch.Size | list[int]) -> Tensor:
    """B F (D) H W -> B F size, linearly between the middles of cells."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return functional.interpolate(x, list(size), mode="trilinear" if x.dim() == 5 else "bilinear", align_corners=False)


def _conv(before: int, after: int, dims: int, kernel: int) -> nn.Module:
    layer: type[nn.Module] = nn.Conv3d if dims == 3 else nn.Conv2d
    return layer(before, after, kernel, padding=kernel // 2)
