"""Arrays cut into a grid of patches, and put together again.

Legend: B batch, C channels, N patches, K place coordinates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def grid_of(size: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """How many patches there are along each axis. Raises ValueError when they do not fill the size."""
    if len(size) != len(patch) or any(s % p for s, p in zip(size, patch, strict=True)):
        raise ValueError(f"patch {list(patch)} does not divide the size {list(size)}. Choose a size or a patch so that "
                         "every axis is a whole number of patches.")
    return tuple(s // p for s, p in zip(size, patch, strict=True))


def coordinates(grid: Sequence[int], device: torch.device) -> Tensor:
    """N K float coordinates of the grid's cells, first axis slowest."""
    axes = torch.meshgrid(*(torch.arange(n, device=device, dtype=torch.float32) for n in grid), indexing="ij")
    return torch.stack([axis.flatten() for axis in axes], -1)


def cut(x: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """B C *size -> B N (*patch C)"""
    batch, channels = x.shape[:2]
    split = x.reshape(batch, channels, *(n for pair in zip(grid, patch, strict=True) for n in pair))
    axes = len(grid)
    cells, inside = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    return split.permute(0, *cells, *inside, 1).reshape(batch, math.prod(grid), -1)


def join(values: Tensor, grid: Sequence[int], patch: Sequence[int], channels: int) -> Tensor:
    """B N (*patch C) -> B C *size"""
    axes = len(grid)
    split = values.reshape(len(values), *grid, *patch, channels)
    order = [2 * axes + 1] + [axis for i in range(axes) for axis in (1 + i, 1 + axes + i)]
    return split.permute(0, *order).reshape(len(values), channels, *(g * p for g, p in zip(grid, patch, strict=True)))
