"""Points on a mesh: every bit of area is equally likely, however the mesh was cut into triangles.

Legend: V vertices, T triangles, N points.
"""

from __future__ import annotations

import numpy as np

from domains.pointcloud.cloud import Cloud, Mesh
from domains.sample import Refused

MOST_STEPS = 12
"""Steps from a mark to a place; beyond, where areas are very uneven, a place is searched for."""
AT_ONCE = 2**20
"""Triangles whose areas are computed together, which takes some 200 bytes each."""


def triangle_areas(vertices: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """T areas. A triangle with a non-finite corner has area 0, so that nothing is ever drawn from it."""
    areas = np.zeros(len(triangles))
    for begin in range(0, len(triangles), AT_ONCE):
        a, b, c = (vertices.take(triangles[begin:begin + AT_ONCE, i], axis=0) for i in range(3))
        with np.errstate(invalid="ignore", over="ignore"):
            areas[begin:begin + AT_ONCE] = _lengths_of_cross((b - a).T, (c - a).T) / 2
    return np.where(np.isfinite(areas), areas, 0.0)


def _lengths_of_cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Of 3 T and 3 T: what numpy's norm of its cross product is, to the last bit, in a third of the time: column by
    column, since numpy is slow over rows of three."""
    x, y, z = u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]
    lengths: np.ndarray = np.sqrt(x * x + y * y + z * z)
    return lengths


def _first_above(ends: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`np.searchsorted(ends, places, side="right")`, in half the time where places are in no order: from a mark before
    each step by step, as most are a few steps behind one."""
    num = len(ends)
    marks = np.searchsorted(ends, np.arange(num) * (ends[-1] / num), side="right")
    found = marks[np.clip(places * (num / ends[-1]) - 1, 0, num - 1).astype(np.intp)]
    behind = np.arange(len(places))
    for _ in range(MOST_STEPS):
        at = found[behind]
        behind = behind[(ends.take(at, mode="clip") <= places[behind]) & (at < num)]
        if not len(behind):
            return found
        found[behind] += 1
    found[behind] = np.searchsorted(ends, places[behind], side="right")
    return found


def sample_surface(vertices: np.ndarray, triangles: np.ndarray, num: int,
                   rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Draw `num` points uniformly by area. Open meshes, polygon soups and uneven triangles are fine.

    Returns:
        N 3 points in random order, and the area of the surface.
    """
    chosen, shares, area = _draw(vertices, triangles, num, rng)
    return _mix(vertices, chosen, shares), area


def sample_mesh(mesh: Mesh, num: int, rng: np.random.Generator, normals: bool = True) -> tuple[Cloud, float]:
    """The same with attributes: those of the vertices are mixed as their places are, and normals, if wanted, are those
    of the triangles. Which side a normal is on follows the order of a triangle's corners, which many meshes mix up.

    Returns:
        N points, and the area of the surface.
    """
    chosen, shares, area = _draw(mesh.vertices, mesh.triangles, num, rng)
    more = {name: _mix(values, chosen, shares) for name, values in mesh.more.items()}
    if normals:
        a, b, c = (mesh.vertices.take(chosen[:, i], axis=0) for i in range(3))
        more["normals"] = np.cross(b - a, c - a)
    return Cloud(_mix(mesh.vertices, chosen, shares), more), area


def _draw(vertices: np.ndarray, triangles: np.ndarray, num: int,
          rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray], float]:
    """N 3 corners of the triangle that each point lies on, the share of each corner (three of N 1), and the area."""
    areas = triangle_areas(vertices, triangles)
    ends = np.cumsum(areas)
    if not len(ends) or ends[-1] <= 0:
        raise Refused(f"mesh: found {len(triangles)} triangles that cover no area, expected a surface")
    chosen = triangles.take(_first_above(ends, rng.random(num) * ends[-1]).clip(max=len(ends) - 1), axis=0)
    # The square root spreads points evenly over a triangle; without it they would crowd around the first corner
    root, share = np.sqrt(rng.random((num, 1))), rng.random((num, 1))
    return chosen, [1 - root, root * (1 - share), root * share], float(ends[-1])


def _mix(values: np.ndarray, chosen: np.ndarray, shares: list[np.ndarray]) -> np.ndarray:
    a, b, c = (values.take(chosen[:, i], axis=0) for i in range(3))  # half the time of an index
    mixed: np.ndarray = shares[0] * a + shares[1] * b + shares[2] * c
    return mixed
