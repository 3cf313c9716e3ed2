"""From stored points to what a model sees. torch and numpy only: this runs where no point-cloud library is installed.

Legend: B batch, M points stored, N points that a model gets, F values per point: 3 coordinates, then features.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.contract import Contract
from domains.sample import UNKNOWN_CLASS

NUM_FETCH_DRAWS = 2
"""Where the walk through the stored points begins, and how long its steps are."""


def fetch(values: np.ndarray, contract: Contract, draws: np.ndarray | None) -> np.ndarray:
    """Take the contract's number of points from one stored sample (a memory-map view).

    Points are stored in random order, so that the first N are a fair sample, and so is every N-th; or each farthest
    from those before it, so that the first N cover the shape best, and every N-th evenly. A walk with a step that
    shares no divisor with M visits all M before it comes back: no point is taken twice while there are others.

    A sample with fewer than N points gives each equally often (to one), unless the contract has a value for what is
    unknown: then each is given once, and the rest of the rows is unknown.

    Args:
        values: M F.
        draws: NUM_FETCH_DRAWS uniforms in [0, 1) that choose the points; None takes the first N.

    Returns:
        N F in the stored dtype.
    """
    if values.ndim != 2 or values.shape[1] != len(contract.channels) or len(values) == 0:
        raise ValueError(f"shape: found {values.shape}, expected points x {len(contract.channels)}. "
                         "Ingest the data again.")
    # `take` needs a quarter of the time of values[...]
    taken: np.ndarray = np.asarray(values).take(_walk(len(values), contract.size[0], draws), axis=0)
    if contract.unknown is not None:
        taken[len(values):] = contract.unknown
    return taken


def fetch_mask(mask: np.ndarray, contract: Contract, draws: np.ndarray | None) -> np.ndarray:
    """The classes M of a sample's points -> N, those of the points that `fetch` takes."""
    taken: np.ndarray = np.asarray(mask).take(_walk(len(mask), contract.size[0], draws))
    if contract.unknown is not None:
        taken[len(mask):] = UNKNOWN_CLASS
    return taken


def _walk(stored: int, wanted: int, draws: np.ndarray | None) -> np.ndarray:
    """Which of the stored points are taken."""
    first, step = 0, 1
    if draws is not None:
        first = int(float(draws[0]) * stored)
        step = 1 + int(float(draws[1]) * stored)
        while math.gcd(step, stored) != 1:
            step += 1
    walk: np.ndarray = (first + step * np.arange(wanted)) % stored
    return walk


def normalise(raw: Tensor, contract: Contract) -> tuple[Tensor, Tensor | None]:
    """Stored points (B N F) to floats. unit_sphere: centroid to 0, farthest point to 1, per sample. standardise: one
    scale for all axes and samples, so that sizes and proportions stay. Of the features, normals stay as they are, since
    they turn with the points; the others are clipped and standardised one by one.

    Returns:
        B N F, 0 where unknown, and which values are known (a point without a place has nothing that is known); None
        where all are.
    """
    raw = raw.float()
    known = None if contract.unknown is None else _known(raw)
    x = raw if known is None else torch.where(known, raw, 0.0)
    places, features = x[..., :3], x[..., 3:]
    if contract.normalisation == "unit_sphere":
        places = _in_unit_sphere(places, None if known is None else known[..., :1])
    else:
        low, high, mean, scale = _statistics(contract, x)
        places = (places.clamp(low, high) - mean) / scale
    x = places if not features.shape[-1] else torch.cat([places, _standardised(features, contract)], dim=-1)
    return (x, None) if known is None else (torch.where(known, x, 0.0), known)


def _known(raw: Tensor) -> Tensor | None:
    """B N F bool, or None where everything is."""
    finite = raw.isfinite()
    return None if bool(finite.all()) else finite & finite[..., :3].all(-1, keepdim=True)


def _in_unit_sphere(places: Tensor, known: Tensor | None) -> Tensor:
    """B N 3, 0 where unknown, known B N 1."""
    if known is None:
        places = places - places.mean(dim=1, keepdim=True)
    else:
        count = known.sum(dim=1, keepdim=True).clamp_min(1)
        places = torch.where(known, places - places.sum(dim=1, keepdim=True) / count, 0.0)
    radius = places.square().sum(-1).amax(dim=1).sqrt()
    return places / radius.clamp_min(torch.finfo(torch.float16).tiny).view(-1, 1, 1)


def _standardised(features: Tensor, contract: Contract) -> Tensor:
    channels = contract.channels[3:]
    directions = [channel.unit == "direction" for channel in channels]
    numbers = [(c.low, c.high, 0.0, 1.0) if direction else (c.low, c.high, c.mean, c.std)
               for c, direction in zip(channels, directions, strict=True)]
    low, high, mean, std = torch.tensor(numbers, dtype=torch.float32, device=features.device).unbind(1)
    return (features.clamp(low, high) - mean) / std


def on_the_map(values: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """Where stored points lie, in the units of the file's own map: the inverse of what ingest did to a scene.

    Args:
        values: M F as stored.
        facts: of the sample; `origin` and `stored_unit` are there for LAS, LAZ and for tiles of any file.

    Returns:
        M 3 float64: x, y and z. Stored as metres they are good to a millimetre, in the unit sphere to 1/2000 of the
        tile's radius.
    """
    if "origin" not in facts or "stored_unit" not in facts:
        raise ValueError("facts: found no `origin` and `stored_unit`, expected both. Only LAS, LAZ and tiles keep "
                         "their place on the map.")
    places: np.ndarray = np.asarray(values[:, :3], dtype=np.float64) * facts["stored_unit"] + np.array(facts["origin"])
    return places


def denormalise(x: Tensor, contract: Contract) -> Tensor:
    """Back to stored units, for pictures; x may lack the features. Under unit_sphere the stored unit is the sample's
    radius, and x already is in it, up to the shift and stretch between the stored points and the few that were fetched.
    """
    places, features = x[..., :3], x[..., 3:]
    if contract.normalisation != "unit_sphere":
        _, _, mean, scale = _statistics(contract, x)
        places = places * scale + mean
    if features.shape[-1]:
        numbers = [(0.0, 1.0) if c.unit == "direction" else (c.mean, c.std) for c in contract.channels[3:]]
        mean, std = torch.tensor(numbers, dtype=torch.float32, device=x.device).unbind(1)
        features = features * std + mean
    return torch.cat([places, features], dim=-1) if features.shape[-1] else places


def _statistics(contract: Contract, like: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Low, high and mean per axis, and one scale: the root of the mean variance of the axes."""
    columns = zip(*((c.low, c.high, c.mean, c.std) for c in contract.channels[:3]), strict=True)
    low, high, mean, std = (torch.tensor(column, dtype=torch.float32, device=like.device) for column in columns)
    return low, high, mean, std.square().mean().sqrt()
