"""From stored numbers to what a model sees. torch and numpy only: this runs where no medical library is installed.

Legend: B batch, C channels, D H W voxels (D is absent for films).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from domains.contract import Contract
from domains.sample import UNKNOWN_CLASS

NUM_FETCH_DRAWS = 3
"""One uniform per axis for the corner of a crop. A film uses the last two, if it is larger than the model's size."""


def fetch(values: np.ndarray, contract: Contract, draws: np.ndarray | None) -> np.ndarray:
    """Cut the contract's size out of one stored sample (a memory-map view), reading only that part.

    Args:
        draws: NUM_FETCH_DRAWS uniforms in [0, 1) that place the crop; None takes the centre.

    Returns:
        C H W or C D H W in the stored dtype, a view where it can be. Where the sample is smaller, it is
        centred among the contract's unknown.
    """
    spatial = values.shape[1:]
    if len(spatial) != len(contract.size):
        raise ValueError(f"shape: found {len(spatial)} axes after the channels, expected {len(contract.size)} "
                         f"for size {contract.size}. Ingest the data again.")
    places = [0.5] * len(spatial) if draws is None else [float(draw) for draw in draws[-len(spatial):]]
    cut, paste = [slice(None)], [slice(None)]
    for stored, wanted, place in zip(spatial, contract.size, places, strict=True):
        taken = min(stored, wanted)
        start = min(int(place * (stored - wanted + 1)), stored - wanted) if stored > wanted else 0
        cut.append(slice(start, start + taken))
        paste.append(slice((wanted - taken) // 2, (wanted - taken) // 2 + taken))
    crop = values[tuple(cut)]
    if crop.shape[1:] == tuple(contract.size):
        return crop
    if contract.unknown is None:
        raise ValueError(f"size: found a sample of {spatial}, expected at least {contract.size}, since this data has "
                         "no value for unknown places to pad with. Ingest again at this size.")
    out = np.full((values.shape[0], *contract.size), contract.unknown, dtype=values.dtype)
    out[tuple(paste)] = crop
    return out


def fetch_mask(mask: np.ndarray, contract: Contract, draws: np.ndarray | None) -> np.ndarray:
    """What `fetch` does with a sample, done with its mask: H W or D H W -> the contract's size. Where the sample is
    smaller, it is centred among UNKNOWN_CLASS."""
    return fetch(mask[None], dataclasses.replace(contract, unknown=UNKNOWN_CLASS), draws)[0]


def normalise(raw: Tensor, contract: Contract) -> tuple[Tensor, Tensor | None]:
    """Stored numbers (B C ...) to standardised floats, and which of them are known.

    Unknown places are 0 in the result. None instead of a map: this data has no unknown places at all.
    """
    low, high, mean, std = _statistics(contract, raw)
    x = (raw.float().clamp(low, high) - mean) / std
    if contract.unknown is None:
        return x, None
    known = raw != contract.unknown
    return x.masked_fill(~known, 0.0), known


def denormalise(x: Tensor, contract: Contract) -> Tensor:
    """The inverse of normalise for known places: floats in stored units, for pictures."""
    low, high, mean, std = _statistics(contract, x)
    return (x * std + mean).clamp(low, high)


def _statistics(contract: Contract, like: Tensor) -> tuple[Tensor, ...]:
    """Low, high, mean and std of the channels, each of shape C 1 1 (1)."""
    if like.shape[1] != len(contract.channels):
        raise ValueError(f"channels: found {like.shape[1]}, expected {len(contract.channels)} "
                         f"({', '.join(contract.names)}). Give the channels that the contract names.")
    shape = (-1,) + (1,) * (like.dim() - 2)
    columns = zip(*((c.low, c.high, c.mean, c.std) for c in contract.channels), strict=True)
    return tuple(torch.tensor(column, dtype=torch.float32, device=like.device).view(shape) for column in columns)
