"""A head that says the class of every point.

Legend: B batch, M points with F values each, V groups, E width of the encoder, T blocks that are looked into, K classes
without the background.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.encoder.batch_norm import SyncedBatchNorm1d
from models.encoder.patches import Features, Patches, see_all, take
from models.encoder.point_ops import nearest_neighbours
from models.encoder.transformer import max_of_valid, mean_of_valid
from models.heads.segment_grid import SegmentHead

BLOCKS = 3
"""Blocks whose tokens are put side by side: a third, two thirds and all of the way (3, 7 and 11 of 12 in Point-MAE)."""
NEAREST = 3
"""Centres whose features a point gets."""


class SegmentPoints(nn.Module):
    """(Features, Patches, x) -> B K+1 M (Pang et al. 2022, Point-MAE, section 4.2, part segmentation; interpolation of
    Qi et al. 2017, PointNet++, section 3.4).

    Tokens of several blocks, normalised, are brought to every point from its three nearest centres, by the inverse of
    the squared distance; beside them stand their maximum and mean over all groups, and the point's own values.

    Differs from the paper: widths are settings, no embedding of the object's category, which scenes do not have.
    """

    def __init__(self, settings: SegmentHead, width: int, num_classes: int, num_channels: int, depth: int) -> None:
        super().__init__()
        self.settings = settings
        self.linear = settings.design == "linear"
        count = 1 if self.linear else min(BLOCKS, depth)
        self.taps = () if self.linear else tuple(round(depth * (i + 1) / count) - 1 for i in range(count))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in self.taps)
        hidden = 8 * settings.width
        self.before = nn.ModuleList() if self.linear else nn.ModuleList([
            nn.Linear(3 * count * width + num_channels, 2 * hidden), SyncedBatchNorm1d(2 * hidden), nn.ReLU(),
            nn.Dropout(0.5), nn.Linear(2 * hidden, hidden), SyncedBatchNorm1d(hidden), nn.ReLU()])
        self.output = nn.Linear(width if self.linear else hidden, num_classes)
        nn.init.trunc_normal_(self.output.weight, std=0.01)
        nn.init.zeros_(self.output.bias)

    def pool(self, features: Features) -> Tensor:
        """-> B E"""
        return mean_of_valid(features.tokens, features.valid)

    def forward(self, features: Features, patches: Patches, x: Tensor) -> Tensor:
        """-> B K+1 M logits"""
        centres = take(patches.place, see_all(patches).visible)             # B V 3
        valid = features.valid
        tokens = features.tokens
        if not self.linear:
            count = tokens.shape[1]
            tokens = torch.cat([norm(layer[:, layer.shape[1] - count:])
                                for norm, layer in zip(self.norms, features.layers, strict=True)], -1)         # B V T*E
        y = brought(tokens, centres, x[..., :3], valid)                     # B M T*E
        if not self.linear:
            y = torch.cat([y, _of_all(tokens, valid)[:, None].expand(-1, y.shape[1], -1), x], -1)
            flat = y.flatten(0, 1)                                          # B*M 3T*E+F
            for layer in self.before:
                flat = layer(flat)
            y = flat.unflatten(0, y.shape[:2])
        told: Tensor = self.output(y).transpose(1, 2)
        return told


def brought(tokens: Tensor, centres: Tensor, places: Tensor, valid: Tensor | None) -> Tensor:
    """Tokens B V E at centres B V 3 -> B M E at places B M 3: of the nearest centres, weighted by the inverse of the
    squared distance. valid B V: centres that there are; None: all."""
    count = min(NEAREST, centres.shape[1])
    index = nearest_neighbours(places, centres, count, valid)               # B M 3
    gone = (places[:, :, None] - take(centres, index.flatten(1)).unflatten(1, index.shape[1:])).square().sum(-1)
    weight = 1 / gone.clamp(min=1e-8)                                       # B M 3
    if valid is not None:
        real = torch.arange(count, device=weight.device) < valid.sum(1, keepdim=True)           # B 3: no repetition
        weight = weight * real[:, None]
    weight = weight / weight.sum(-1, keepdim=True).clamp(min=1e-8)
    near = take(tokens, index.flatten(1)).unflatten(1, index.shape[1:])     # B M 3 E
    return (near * weight[..., None].to(near.dtype)).sum(2)


def _of_all(tokens: Tensor, valid: Tensor | None) -> Tensor:
    """B V E -> B 2E: the maximum and the mean over the groups that there are."""
    return torch.cat([max_of_valid(tokens, valid), mean_of_valid(tokens, valid)], -1)
