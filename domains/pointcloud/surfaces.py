"""Points on a mesh: every bit of area is equally likely, however the mesh was cut into triangles.

Legend: V vertices, T triangles, N points.
"""

from __future__ import annotations

import numpy as np

from domains.sample import Refused


def triangle_areas(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """T areas. A triangle with a non-finite corner has area 0, so that nothing is ever drawn from it."""
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    with np.errstate(invalid="ignore", over="ignore"):
        areas = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    return np.where(np.isfinite(areas), areas, 0.0)


def sample_surface(vertices: np.ndarray, triangles: np.ndarray, num: int,
                   rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Draw `num` points uniformly by area. Open meshes, polygon soups and uneven triangles are fine.

    Returns:
        N 3 points in random order, and the area of the surface.
    """
    areas = triangle_areas(vertices, triangles)
    ends = np.cumsum(areas)
    if not len(ends) or ends[-1] <= 0:
        raise Refused(f"mesh: found {len(triangles)} triangles that cover no area, expected a surface")
    chosen = triangles[np.searchsorted(ends, rng.random(num) * ends[-1], side="right").clip(max=len(ends) - 1)]
    # The square root spreads points evenly over a triangle; without it they would crowd around the first corner
    root, share = np.sqrt(rng.random((num, 1))), rng.random((num, 1))
    a, b, c = (vertices[chosen[:, i]] for i in range(3))
    return (1 - root) * a + root * (1 - share) * b + root * share * c, float(ends[-1])
