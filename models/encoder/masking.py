"""Masks as functions of place. A masking is a frozen settings object with __call__: the setting is the function.

`visible`, `hidden` and dropped patches are disjoint and cover all. Patches without data are always dropped.

Legend: B batch, N patches, V visible, H hidden, K place coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from models.encoder.chance import Chance
from models.encoder.patches import Mask, Patches, take

_ORDER, _CENTRE, _NUM_CHANNELS, _CHANNELS = 11, 12, 13, 14  # streams: each use of chance has its own numbers


@dataclass(frozen=True)
class RandomMasking:
    """Hide a share of the patches, uniformly without replacement (MAE, He et al. 2022, section 3)."""

    kind: Literal["random"] = "random"
    ratio: float = 0.75
    """Share of the patches with data that is hidden; the number seen is floor(n * (1 - ratio)), at least one."""

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def __call__(self, patches: Patches, chance: Chance) -> Mask:
        score = chance.uniform(patches.place.shape[1], _ORDER)
        return split_by_score(score, patches.usable(), self.ratio)


@dataclass(frozen=True)
class BlockMasking:
    """Hide the patches nearest to a random one: a square on an image, a ball on a cloud (Point-MAE's "block")."""

    kind: Literal["block"] = "block"
    ratio: float = 0.6
    """Share of the patches with data that is hidden."""

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def __call__(self, patches: Patches, chance: Chance) -> Mask:
        place, usable = patches.place.float(), patches.usable()
        pick = chance.uniform(place.shape[1], _CENTRE)
        if usable is not None:
            pick = pick.masked_fill(~usable, -1.0)  # a block grows from a patch that holds data
        centre = take(place, pick.argmax(1, keepdim=True))                   # B 1 K
        nearness = -(place - centre).square().sum(-1)                       # B N, largest at the centre: hidden
        return split_by_score(nearness, usable, self.ratio)


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
        _check_ratio(self.ratio)
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


Masking = RandomMasking | BlockMasking | ChannelMasking


def with_all_channels(masking: Masking) -> Masking:
    """The same masking without the sampling of channels."""
    return replace(masking, min_channels=10**6, max_channels=None) if isinstance(masking, ChannelMasking) else masking


def split_by_score(score: Tensor, usable: Tensor | None, ratio: float) -> Mask:
    """See the patches with the smallest scores, hide the largest `ratio` of them, drop those that are not usable.

    Args:
        score: B N.
        usable: B N bool, or None when all are.
    """
    count = score.shape[1]
    if usable is None:
        seen = num_visible(count, ratio)
        order = score.argsort(dim=1, stable=True)
        return Mask(order[:, :seen], order[:, seen:])
    order = score.masked_fill(~usable, float("inf")).argsort(dim=1, stable=True)            # dropped ones at the end
    available = usable.sum(1)                                               # B
    seen_each = (available.double() * (1 - ratio)).floor().long().clamp(min=1)
    seen_each = torch.minimum(seen_each, available)
    hidden_each = available - seen_each
    at = torch.arange(count, device=score.device)
    seen, hidden = max(int(seen_each.max()), 1), max(int(hidden_each.max()), 1)
    visible_valid = at[:seen] < seen_each[:, None]                          # B V
    hidden_at = (seen_each[:, None] + at[:hidden]).clamp(max=count - 1)     # B H
    hidden_valid = at[:hidden] < hidden_each[:, None]
    if bool(visible_valid.all()) and bool(hidden_valid.all()):
        return Mask(order[:, :seen], order.gather(1, hidden_at))
    return Mask(order[:, :seen], order.gather(1, hidden_at), visible_valid, hidden_valid)


def num_visible(count: int, ratio: float) -> int:
    """floor(count * (1 - ratio)) as the reference counts it, at least one."""
    return max(int(count * (1 - ratio)), 1)


def _check_ratio(ratio: float) -> None:
    if not 0 < ratio < 1:
        raise ValueError(f"mask ratio: found {ratio}, expected a share between 0 and 1 (0.75 hides three quarters).")
