"""Masks as functions of place. A masking is a frozen settings object with __call__: the setting is the function.

`visible`, `hidden` and dropped patches are disjoint and cover all. Patches without data are always dropped.

Legend: B batch, N patches, V visible, H hidden, K place coordinates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from models.encoder.chance import Chance
from models.encoder.grid_2d_3d import Grid2D3D
from models.encoder.mask_lists import Rounding, check_ratio, split_by_score, split_cells
from models.encoder.masking_cells import CellMasking
from models.encoder.masking_colour import ColourNoiseMasking
from models.encoder.patches import Mask, Patches, take
from models.encoder.tokenizers import Grid, Groups, TokenizerSettings

_ORDER, _CENTRE, _NUM_CHANNELS, _CHANNELS = 11, 12, 13, 14  # streams: each use of chance has its own numbers


@dataclass(frozen=True)
class RandomMasking:
    """Hide a share of the patches, uniformly without replacement (MAE, He et al. 2022, section 3)."""

    kind: Literal["random"] = "random"
    ratio: float = 0.75
    """Share of the patches with data that is hidden; at least one is seen."""
    round_hidden: Rounding = "up"
    """Where the share is no whole number of patches: up hides one more, as MAE; down does not, as Point-MAE."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    def __call__(self, patches: Patches, chance: Chance) -> Mask:
        score = chance.uniform(patches.place.shape[1], _ORDER)
        return split_by_score(score, patches.usable(), self.ratio, self.round_hidden)


@dataclass(frozen=True)
class BlockMasking:
    """Hide the patches nearest to a random one: a square on an image, a ball on a cloud (Point-MAE's "block")."""

    kind: Literal["block"] = "block"
    ratio: float = 0.6
    """Share of the patches with data that is hidden."""
    round_hidden: Rounding = "up"
    """Where the share is no whole number of patches: up hides one more, as MAE; down does not, as Point-MAE."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    def __call__(self, patches: Patches, chance: Chance) -> Mask:
        place, usable = patches.place.float(), patches.usable()
        pick = chance.uniform(place.shape[1], _CENTRE)
        if usable is not None:
            pick = pick.masked_fill(~usable, -1.0)  # a block grows from a patch that holds data
        centre = take(place, pick.argmax(1, keepdim=True))                   # B 1 K
        nearness = -(place - centre).square().sum(-1)                       # B N, largest at the centre: hidden
        return split_by_score(nearness, usable, self.ratio, self.round_hidden)


@dataclass(frozen=True)
class ChannelMasking:
    """Hierarchical channel sampling, then random hiding (ChannelViT, Bao et al. 2024, section 3.2: first how many
    channels, uniformly, then which). It needs places that begin with the channel: (band, y, x).

    The number of channels is equal on all ranks of a step, so that shapes are; which ones is each sample's own choice.
    """

    kind: Literal["channels"] = "channels"
    ratio: float = 0.75
    """Share hidden of the patches of the channels that were kept."""
    min_channels: int = 1
    """Fewest channels kept."""
    max_channels: int | None = None
    """Most channels kept; None: all."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if self.min_channels < 1 or (self.max_channels is not None and self.max_channels < self.min_channels):
            raise ValueError(f"channels kept: found {self.min_channels} to {self.max_channels}, "
                             "expected 1 <= min_channels <= max_channels.")

    def __call__(self, patches: Patches, chance: Chance) -> Mask:
        channel = patches.place[..., 0].long()                              # B N
        usable = patches.usable()
        if usable is None:
            usable = torch.ones_like(channel, dtype=torch.bool)
        present, slot = torch.unique(channel, return_inverse=True)          # C; B N into C
        total = len(present)
        most = total if self.max_channels is None else min(self.max_channels, total)
        fewest = min(self.min_channels, most)
        keep = fewest + int(chance.shared_uniform(_NUM_CHANNELS) * (most - fewest + 1))
        # A channel that a sample lacks sorts last, so that it is never chosen before one with data.
        has_data = torch.zeros(len(channel), total, dtype=torch.bool, device=channel.device)
        has_data = has_data.scatter_reduce(1, slot, usable, reduce="amax")
        score = chance.uniform(total, _CHANNELS).masked_fill(~has_data, 2.0)  # B C
        rank = score.argsort(1).argsort(1)
        kept = take(rank < keep, slot)                                      # B N
        order = chance.uniform(channel.shape[1], _ORDER)
        return split_by_score(order, usable & kept, self.ratio)


@dataclass(frozen=True)
class ConsistentMasking:
    """Hide the same positions in every band or group of bands ("consistent" masks of SatMAE, Cong et al. 2022, beside
    independent ones, which are `random`). It needs places that begin with the channel: (band, y, x)."""

    kind: Literal["consistent"] = "consistent"
    ratio: float = 0.75
    """Share hidden of the positions where any band has data."""

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    def __call__(self, patches: Patches, chance: Chance) -> Mask:
        cell, count = _cells(patches.place)                                 # B N into L positions
        return split_cells(cell, chance.uniform(count, _ORDER), patches.usable(), self.ratio)


Masking = RandomMasking | BlockMasking | ChannelMasking | ConsistentMasking | ColourNoiseMasking | CellMasking


def with_all_channels(masking: Masking) -> Masking:
    """The same masking without the sampling of channels."""
    return replace(masking, min_channels=10**6, max_channels=None) if isinstance(masking, ChannelMasking) else masking


def check_masking(masking: Masking, tokenizer: TokenizerSettings) -> None:
    """Raises ValueError where these masks mean nothing on patches of that kind."""
    by_band = not isinstance(tokenizer, Grid | Grid2D3D | Groups)
    if isinstance(masking, ChannelMasking | ConsistentMasking) and not by_band:
        raise ValueError(f"masking {masking.kind} needs one token per band (tokenizer bands), found {tokenizer.kind}.")
    if isinstance(masking, CellMasking):
        _check_cells(masking, tokenizer)
    if isinstance(masking, ColourNoiseMasking) and masking.per_band != by_band:
        raise ValueError(f"masking colour_noise: found per_band {str(masking.per_band).lower()}, expected "
                         f"{str(by_band).lower()} for tokenizer {tokenizer.kind}, since its places "
                         f"{'begin' if by_band else 'do not begin'} with a band.")


def _check_cells(masking: CellMasking, tokenizer: TokenizerSettings) -> None:
    if isinstance(tokenizer, Groups):
        raise ValueError("masking cells needs a grid to cut; groups of points lie on none. Take masking block.")
    if len(tokenizer.patch) != len(masking.cell):
        raise ValueError(f"masking cells: found cell {list(masking.cell)}, expected {len(tokenizer.patch)} sizes, as "
                         f"many as `patch` of tokenizer {tokenizer.kind} has.")


def _cells(place: Tensor) -> tuple[Tensor, int]:
    """B N numbers of the positions behind the channel in place B N K, and how many numbers there are."""
    at = place[..., 1:].long()
    sizes = (at.amax((0, 1)) + 1).tolist()
    cell = at[..., 0]
    for axis, size in enumerate(sizes[1:], start=1):
        cell = cell * size + at[..., axis]
    return cell, math.prod(sizes)
