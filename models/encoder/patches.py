"""A patch is some values at a place.

Legend: B batch, C channels, N patches, V visible, H hidden, P values per patch, K place coordinates, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Patches(NamedTuple):
    """What a tokenizer cuts a sample into."""

    values: Tensor
    """B N P: raw data, also the target. Unknown values are 0."""
    place: Tensor
    """B N K: where each patch is; the last axes are (z, y, x) or (y, x) in patch units, or a point's coordinates."""
    known: Tensor | None = None
    """B N P bool: which values are real data; None when all are."""
    grid: tuple[int, ...] | None = None
    """How many patches there are along each axis of place, a band axis first where there is one; None for points. A
    table of positions needs it to fit itself to other sizes."""

    def usable(self) -> Tensor | None:
        """B N bool: patches that hold any real data; None when all do. The others are dropped by every mask."""
        return None if self.known is None else self.known.any(-1)


class Mask(NamedTuple):
    """Which patches are seen and which are asked for, as index lists; a patch in neither is dropped: it is not
    embedded, not predicted, not scored. Index lists have no polarity that could be got wrong."""

    visible: Tensor
    """B V int64 into N."""
    hidden: Tensor
    """B H int64 into N."""
    visible_valid: Tensor | None = None
    """B V bool where samples have different counts: False marks filler at the end of a list. None: all valid."""
    hidden_valid: Tensor | None = None
    """B H bool, likewise."""


class Features(NamedTuple):
    """What an encoder returns."""

    tokens: Tensor
    """B V D after the last norm."""
    summary: Tensor
    """B D: the class token after the last norm where there is one, else the mean of the valid tokens."""
    layers: tuple[Tensor, ...] = ()
    """One B S D per block asked for, before the last norm: the whole sequence, class token first where there is one."""
    valid: Tensor | None = None
    """B V bool: which tokens are real; None when all are."""
    extra: Tensor | None = None
    """B X D after the last norm: what an adapter has put between the class token and the patches (prompts)."""


def take(x: Tensor, index: Tensor) -> Tensor:
    """x B N ..., index B V -> B V ..."""
    return x.gather(1, index.reshape(*index.shape, *[1] * (x.dim() - 2)).expand(*index.shape, *x.shape[2:]))


def take_patches(patches: Patches, index: Tensor) -> Patches:
    """The patches at `index` B V."""
    return Patches(take(patches.values, index), take(patches.place, index),
                   None if patches.known is None else take(patches.known, index), patches.grid)


def see_all(patches: Patches) -> Mask:
    """Everything that holds data is visible, nothing hidden: what fine-tuning and prediction use."""
    batch, count = patches.values.shape[:2]
    every = torch.arange(count, device=patches.values.device).expand(batch, count)
    none = every[:, :0]
    usable = patches.usable()
    if usable is None or bool(usable.all()):
        return Mask(every, none)
    order = torch.argsort((~usable).to(torch.uint8), dim=1, stable=True)  # usable first, in their own order
    longest = max(int(usable.sum(1).max()), 1)
    return Mask(order[:, :longest], none, take(usable, order)[:, :longest])
