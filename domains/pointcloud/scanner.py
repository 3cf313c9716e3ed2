"""A laser scanner for the embedded sample: what stands behind something is not seen, what is far or slanted gets few
points, ranges are noisy, and part of the ground comes along.

Legend: M points; z points up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from domains.pointcloud.shapes import Mesh, join
from domains.pointcloud.surfaces import sample_surface

DENSE = 12_000
"""Points that stand for the surface before the scanner chooses among them."""
SKIN = 0.05
"""A point this far behind the nearest one in its beam still belongs to the same surface."""


@dataclass(frozen=True)
class Scanner:
    """How one campaign scans. Lengths are in body heights."""

    positions: tuple[int, int] = (1, 3)
    """From how many places an object is scanned, from and to."""
    beams: tuple[int, int] = (34, 52)
    """Beams across the scene, from and to: the density."""
    range_noise: tuple[float, float] = (0.012, 0.03)
    """Standard deviation along the beam, from and to."""
    stray: float = 0.015
    """Share of points that lie anywhere along their beam: mixed returns at edges, dust, rain."""
    ground: float = 0.7
    """Chance that a fragment of the ground was left on when the object was cut out."""
    shadows: int = 2
    """Up to this many balls that returned nothing: wet or black spots."""


def scan(mesh: Mesh, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """M 3 points of the mesh as the scanner sees them, in the order of the beams."""
    scene = join([mesh, _ground(mesh, rng)]) if rng.random() < scanner.ground else mesh
    surface, _ = sample_surface(*scene, DENSE, rng)
    heading = rng.uniform(0, 2 * math.pi)
    parts = []
    for _ in range(int(rng.integers(scanner.positions[0], scanner.positions[1] + 1))):
        parts.append(_from_one_place(surface, heading, scanner, rng))
        heading += rng.choice([-1, 1]) * rng.uniform(1.2, 2.4)  # the next place sees another side, with some overlap
    points = np.concatenate(parts)
    for _ in range(int(rng.integers(0, scanner.shadows + 1))):
        centre = surface[rng.integers(len(surface))]
        points = points[np.linalg.norm(points - centre, axis=1) > rng.uniform(0.06, 0.16)]
    return points


def _from_one_place(surface: np.ndarray, heading: float, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Parallel beams on a grid: of the points in each beam, one of the nearest skin returns. A slanted face gets fewer
    beams, and hidden faces none, as in life."""
    tilt = rng.uniform(0.1, 0.7)
    away = np.array([math.cos(heading) * math.cos(tilt), math.sin(heading) * math.cos(tilt), -math.sin(tilt)])
    right = np.array([-math.sin(heading), math.cos(heading), 0.0])
    up = np.cross(right, away)
    depth = surface @ away
    beams = int(rng.integers(scanner.beams[0], scanner.beams[1] + 1))
    cell = 1.6 / beams
    beam = (np.floor(surface @ right / cell) * 4096 + np.floor(surface @ up / cell)).astype(np.int64)
    order = np.lexsort((depth, beam))
    beam, depth, surface = beam[order], depth[order], surface[order]
    first = np.concatenate([[True], beam[1:] != beam[:-1]])
    nearest = depth[np.maximum.accumulate(np.where(first, np.arange(len(beam)), 0))]
    seen = np.flatnonzero(depth - nearest < SKIN)
    seen = seen[np.unique(beam[seen], return_index=True)[1]]
    noise = rng.normal(0, rng.uniform(*scanner.range_noise), len(seen))
    noise = np.where(rng.random(len(seen)) < scanner.stray, rng.uniform(-0.4, 0.4, len(seen)), noise)
    return surface[seen] + noise[:, None] * away


def _ground(mesh: Mesh, rng: np.random.Generator) -> Mesh:
    """A four-cornered fragment of the plane under the object."""
    low = mesh[0][:, 2].min()
    angles = np.sort(rng.uniform(0, 2 * math.pi) + math.pi / 2 * np.arange(4) + rng.uniform(-0.3, 0.3, 4))
    radius = rng.uniform(0.3, 0.85, 4)
    corners = np.column_stack([radius * np.cos(angles), radius * np.sin(angles), np.full(4, low)])
    return corners, np.array([[0, 1, 2], [0, 2, 3]])
