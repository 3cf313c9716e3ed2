"""From a stored sample to what an encoder gets.

Legend: B batch, C bands, H W rows and columns.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from domains.contract import Contract

NUM_FETCH_DRAWS = 2
"""Row and column of the crop."""


def fetch(values: np.ndarray, contract: Contract, draws: np.ndarray | None) -> np.ndarray:
    """A crop of the contract's size out of a stored sample, which is at least as large.

    Args:
        values: C H W, a view into the map.
        draws: NUM_FETCH_DRAWS uniforms in [0, 1) that place the crop; None for the centre.

    Returns:
        C H W in the stored dtype, a view of `values`: only the crop is read, when it is copied.
    """
    offsets = []
    for axis, want in enumerate(contract.size):
        spare = values.shape[1 + axis] - want
        if spare < 0:
            raise ValueError(f"sample: found {values.shape[1:]} pixels, expected at least {contract.size}. "
                             "Remedy: ingest again with this `size`; smaller files are padded there.")
        offsets.append(spare // 2 if draws is None else int(draws[axis] * (spare + 1)))
    top, left = offsets
    return values[:, top:top + contract.size[0], left:left + contract.size[1]]


def fetch_mask(mask: np.ndarray, contract: Contract, draws: np.ndarray | None) -> np.ndarray:
    """The crop of a mask H W that `fetch` takes of its scene."""
    return fetch(mask[None], contract, draws)[0]


def normalise(raw: Tensor, contract: Contract) -> tuple[Tensor, Tensor | None]:
    """Per band (clip(value) - mean) / std, 0 where unknown.

    Args:
        raw: B C H W in stored units, on any device.

    Returns:
        x: B C H W float32. known: B C H W bool, or None when the contract has no unknown value.
    """
    stored = raw.to(torch.float32)  # exact for every uint16
    low, high, mean, std = _statistics(contract, stored)
    x = (stored.clamp(low, high) - mean) / std
    if contract.unknown is None:
        return x, None
    known = stored.isfinite() if np.isnan(contract.unknown) else stored != contract.unknown
    return torch.where(known, x, 0.0), known


def denormalise(x: Tensor, contract: Contract) -> Tensor:
    """B C H W back to stored units, for pictures; what was unknown comes back as the mean."""
    _, _, mean, std = _statistics(contract, x)
    return x * std + mean


def _statistics(contract: Contract, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Low, high, mean and std as C 1 1 each."""
    table = torch.tensor([[channel.low, channel.high, channel.mean, channel.std] for channel in contract.channels],
                         dtype=like.dtype, device=like.device)
    low, high, mean, std = table.T[:, :, None, None]
    return low, high, mean, std
