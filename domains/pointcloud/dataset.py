"""From stored points to what a model sees. torch and numpy only: this runs where no point-cloud library is installed.

Legend: B batch, M points stored, N points that a model gets, 3 coordinates.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from domains.contract import Contract

NUM_FETCH_DRAWS = 2
"""Where the walk through the stored points begins, and how long its steps are."""


def fetch(values: np.ndarray, contract: Contract, draws: np.ndarray | None) -> np.ndarray:
    """Take the contract's number of points from one stored sample (a memory-map view).

    Points are stored in random order, so that the first N are a fair sample, and so is every N-th. A walk with a step
    that shares no divisor with M visits all M before it comes back: no point is taken twice while there are others,
    and a sample with fewer than N points gives each equally often (to one).

    Args:
        values: M 3.
        draws: NUM_FETCH_DRAWS uniforms in [0, 1) that choose the points; None takes the first N.

    Returns:
        N 3 in the stored dtype.
    """
    if values.ndim != 2 or values.shape[1] != len(contract.channels) or len(values) == 0:
        raise ValueError(f"shape: found {values.shape}, expected points x {len(contract.channels)}. "
                         "Ingest the data again.")
    stored, wanted = len(values), contract.size[0]
    first, step = 0, 1
    if draws is not None:
        first = int(float(draws[0]) * stored)
        step = 1 + int(float(draws[1]) * stored)
        while math.gcd(step, stored) != 1:
            step += 1
    # `take` needs a quarter of the time of values[...]
    return np.asarray(values).take((first + step * np.arange(wanted)) % stored, axis=0)


def normalise(raw: Tensor, contract: Contract) -> tuple[Tensor, Tensor | None]:
    """Stored points (B N 3) to floats. unit_sphere: centroid to 0, farthest point to 1, per sample. standardise: one
    scale for all axes and samples, so that sizes and proportions stay. Every point is known: the second is None.
    """
    x = raw.float()
    if contract.normalisation == "unit_sphere":
        x = x - x.mean(dim=1, keepdim=True)
        radius = x.square().sum(-1).amax(dim=1).sqrt()
        return x / radius.clamp_min(torch.finfo(torch.float16).tiny).view(-1, 1, 1), None
    low, high, mean, scale = _statistics(contract, x)
    return (x.clamp(low, high) - mean) / scale, None


def denormalise(x: Tensor, contract: Contract) -> Tensor:
    """Back to stored units, for pictures. Under unit_sphere the stored unit is the sample's radius, and x already is in
    it, up to the shift and stretch between the stored points and the few that were fetched."""
    if contract.normalisation == "unit_sphere":
        return x
    _, _, mean, scale = _statistics(contract, x)
    return x * scale + mean


def _statistics(contract: Contract, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Low, high and mean per axis, and one scale: the root of the mean variance of the axes."""
    columns = zip(*((c.low, c.high, c.mean, c.std) for c in contract.channels), strict=True)
    low, high, mean, std = (torch.tensor(column, dtype=torch.float32, device=like.device) for column in columns)
    return low, high, mean, std.square().mean().sqrt()
