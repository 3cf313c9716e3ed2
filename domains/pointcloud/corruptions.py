"""What goes wrong with clouds: fewer points, sectors that no beam reached, noise of the range, an object that lies.

Legend: M points, F values per point: 3 coordinates, then features; z points up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from domains.contract import Contract
from domains.corruption import Corruption

FEWEST = 32
"""Points that are always left: fewer are no shape any more."""


def corruptions(contract: Contract) -> Mapping[str, Corruption]:
    """By name. Noise is told in the cloud's own radius, so that it means the same at every size."""
    return {"density": Corruption("share of points lost", (0.25, 0.5, 0.75, 0.9), 0.999, sparser),
            "sectors": Corruption("degrees not scanned", (45.0, 90.0, 135.0, 180.0), 359.0, without_sector),
            "noise": Corruption("share of the radius", (0.01, 0.02, 0.05, 0.1), 10.0, scattered),
            "tilt": Corruption("degrees", (10.0, 20.0, 45.0, 90.0), 180.0, tilted)}


def sparser(values: np.ndarray, contract: Contract, strength: float, chance: np.random.Generator) -> np.ndarray:
    """A share of the points is lost, each as likely as the others; the order of the rest stays."""
    return _kept(values, chance.random(len(values)), strength)


def without_sector(values: np.ndarray, contract: Contract, strength: float, chance: np.random.Generator) -> np.ndarray:
    """No point within so many degrees about the vertical axis through the middle; from where on, the sample decides."""
    middle = np.nanmean(values[:, :2].astype(np.float64), axis=0)
    across, along = (values[:, :2].astype(np.float64) - middle).T
    place = np.nan_to_num((np.arctan2(along, across) / (2 * math.pi) - chance.random()) % 1.0)
    share = float((place < strength / 360).mean())
    return _kept(values, place, share)


def scattered(values: np.ndarray, contract: Contract, strength: float, chance: np.random.Generator) -> np.ndarray:
    """Normal noise on every coordinate, its standard deviation a share of the distance to the farthest point."""
    places = values[:, :3].astype(np.float64)
    radius = np.linalg.norm(places - np.nanmean(places, axis=0), axis=1)
    out = values.copy()
    out[:, :3] = places + strength * np.nanmax(radius) * chance.standard_normal(places.shape)
    return out


def tilted(values: np.ndarray, contract: Contract, strength: float, chance: np.random.Generator) -> np.ndarray:
    """Tipped over about a horizontal axis through the middle, which the sample chooses; normals turn along."""
    heading, angle = 2 * math.pi * chance.random(), math.radians(strength)
    axis = np.array([math.cos(heading), math.sin(heading), 0.0])
    cross = np.array([[0.0, 0.0, axis[1]], [0.0, 0.0, -axis[0]], [-axis[1], axis[0], 0.0]])
    turn = np.eye(3) + math.sin(angle) * cross + (1 - math.cos(angle)) * cross @ cross  # Rodrigues
    middle = np.nanmean(values[:, :3].astype(np.float64), axis=0)
    out = values.copy()
    out[:, :3] = (values[:, :3] - middle) @ turn.T + middle
    if "nx" in contract.names:
        at = contract.names.index("nx")
        out[:, at:at + 3] = values[:, at:at + 3].astype(np.float64) @ turn.T
    return out


def _kept(values: np.ndarray, place: np.ndarray, share: float) -> np.ndarray:
    """All but this share of the points, those of the lowest `place` lost first, in their old order."""
    lost = min(round(share * len(values)), max(0, len(values) - FEWEST))
    keep = np.sort(np.argsort(place, kind="stable")[lost:])
    return values[keep]
