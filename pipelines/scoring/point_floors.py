"""What can be told of a point of a cloud by its height, its own features and the shape of what surrounds it.

A pole is a line, a roof is a plane, a crown is neither: the eigenvalues of the places of a point's neighbours say so
(Weinmann et al. 2015, "Semantic point cloud interpretation based on optimal neighborhoods, relevant features and
efficient classifiers", section 3.2).

Legend: M points, k neighbours, F features.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.scoring.floor_features import PointsFloor
from pipelines.scoring.metrics import Floats

BLOCK = 2**14
"""Points whose surroundings are looked at together: with 64 neighbours 25 MB."""


def point_features(values: np.ndarray, settings: PointsFloor) -> npt.NDArray[np.float32]:
    """M F of one sample, NaN where unknown: height above its lowest point, the point's own features (intensity, colour,
    normal), for every number of neighbours `surroundings`, and, where asked for, its place and its distance from the
    middle.

    Args:
        values: M 3 + features, in stored units.
    """
    from scipy.spatial import cKDTree  # scikit-learn, which every floor needs, brings it

    x = np.asarray(values, dtype=np.float64)
    xyz = x[:, :3]
    parts = [xyz[:, 2:] - xyz[:, 2].min(), x[:, 3:]]
    tree = cKDTree(xyz)
    for count in settings.neighbours:
        some = [surroundings(xyz, *_nearest(tree, xyz[first:first + BLOCK], count), xyz[first:first + BLOCK, 2])
                for first in range(0, len(xyz), BLOCK)]
        parts.append(np.concatenate(some))
    if settings.place:
        centred = xyz - xyz.mean(axis=0)
        parts += [centred, np.linalg.norm(centred, axis=1, keepdims=True)]
    whole: npt.NDArray[np.float32] = np.concatenate(parts, axis=1).astype(np.float32)
    return whole


def surroundings(xyz: Floats, far: Floats, nearest: npt.NDArray[np.int64], height: Floats) -> Floats:
    """Of points with neighbours, n 8: how far their neighbours are like a line, a plane and a ball (shares of the
    largest eigenvalue), how steep the plane stands (0 flat, 1 upright), how far away the last of them is, and how high
    the point lies above the lowest and above the mean of them, and how much their heights spread.

    Args:
        xyz: M 3. far: n k, distances. nearest: n k, into xyz, the point itself included. height: n.
    """
    near = xyz[nearest]                                                     # n k 3
    centred = near - near.mean(axis=1, keepdims=True)
    spread, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", centred, centred) / nearest.shape[1])  # rising
    spread = spread.clip(min=0)
    top = np.maximum(spread[:, 2], np.finfo(np.float64).tiny)
    z = near[..., 2]
    return np.stack([(spread[:, 2] - spread[:, 1]) / top, (spread[:, 1] - spread[:, 0]) / top, spread[:, 0] / top,
                     1 - np.abs(axes[:, 2, 0]), far[:, -1], height - z.min(axis=1), height - z.mean(axis=1),
                     z.std(axis=1)], axis=1)


def _nearest(tree: object, xyz: Floats, count: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Distances and numbers of the `count` points nearest to each, or of all where there are fewer."""
    far, nearest = tree.query(xyz, k=min(count, tree.n))  # type: ignore[attr-defined]
    return far.reshape(len(xyz), -1), nearest.reshape(len(xyz), -1)
