"""Position codes: functions of place, so that an encoder and a decoder each make their own width, at any size.

Legend: B batch, N patches, K place coordinates, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sin_cos(coordinate: Tensor, dim: int, temperature: float = 10000.0) -> Tensor:
    """coordinate ... -> ... dim: sines, then cosines, at dim / 2 geometric frequencies (Vaswani et al. 2017)."""
    half = dim // 2
    frequency = temperature ** (-torch.arange(half, device=coordinate.device, dtype=torch.float32) / half)
    angle = coordinate.float()[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


class GridPositions(nn.Module):
    """Fixed sines and cosines of the last `axes` coordinates; no parameters.

    The width is shared equally by the axes, x first as in MAE (its code puts the column first), what is left over
    after rounding to even shares is 0.
    """

    def __init__(self, dim: int, axes: int) -> None:
        super().__init__()
        self.dim, self.axes = dim, axes
        self.share = dim // (2 * axes) * 2
        if self.share < 2:
            raise ValueError(f"width {dim} is too small for positions on {axes} axes; expected at least {2 * axes}.")

    def forward(self, place: Tensor) -> Tensor:
        """place B N K -> B N D"""
        grid = place[..., -self.axes:].flip(-1)                             # x, y(, z)
        code = sin_cos(grid, self.share).flatten(-2)                        # B N axes*share
        return nn.functional.pad(code, (0, self.dim - code.shape[-1]))


class BandPositions(nn.Module):
    """Grid positions plus a learnt code per channel (ChannelViT, Bao et al. 2024, section 3.1)."""

    def __init__(self, dim: int, num_channels: int) -> None:
        super().__init__()
        self.grid = GridPositions(dim, axes=2)
        self.channel = nn.Embedding(num_channels, dim)
        nn.init.normal_(self.channel.weight, std=0.02)

    def forward(self, place: Tensor) -> Tensor:
        """place B N 3, (channel, y, x) -> B N D"""
        return self.grid(place) + self.channel(place[..., 0].long())


class PointPositions(nn.Sequential):
    """A small network of the group's centre (Point-MAE, Pang et al. 2022, section 3.2): 3 -> 128 -> D."""

    def __init__(self, dim: int, hidden: int = 128) -> None:
        super().__init__(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, dim))
