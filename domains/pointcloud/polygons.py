"""Polygons of mesh files as triangles."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from domains.sample import Refused


def by_corners(faces: Iterable[list[int]]) -> list[np.ndarray]:
    """Faces given as lists of vertices, as one array of n corners per number of corners."""
    alike: dict[int, list[list[int]]] = {}
    for face in faces:
        alike.setdefault(len(face), []).append(face)
    return [np.array(some, dtype=np.int64).reshape(len(some), corners) for corners, some in alike.items()]


def triangles_of(polygons: Iterable[np.ndarray], num_vertices: int, what: str) -> np.ndarray:
    """Cut polygons into fans of triangles.

    Args:
        polygons: arrays of n corners each, of integers; those with less than three corners are passed over.
        what: the format, for the refusal.

    Returns:
        T 3 int64. Raises Refused where a corner is no vertex.
    """
    fans = [faces if faces.shape[1] == 3 else
            np.stack([np.broadcast_to(faces[:, :1], faces[:, 2:].shape), faces[:, 1:-1], faces[:, 2:]], axis=-1)
            .reshape(-1, 3) for faces in polygons if faces.shape[1] >= 3]
    triangles = np.concatenate(fans).astype(np.int64, copy=False) if fans else np.zeros((0, 3), np.int64)
    if triangles.size and not 0 <= triangles.min() <= triangles.max() < num_vertices:
        raise Refused(f"{what}: a face names a vertex that is not among the {num_vertices}")
    return triangles
