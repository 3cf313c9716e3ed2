"""Farthest points of a cloud, on a CPU, while files are read.

Legend: M points, S chosen points.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from domains.pointcloud.libraries import library

HEIGHTS = ((4_096, 3), (65_536, 5), (1 << 62, 7))
"""Height of fpsample's tree of boxes for clouds up to so many points, the fastest that were measured
(docs/benchmarks.md). Any height gives the same points, up to float32 rounding of equals."""


def farthest_first(points: np.ndarray, num: int) -> np.ndarray:
    """Choose points, each the farthest from all chosen before it, so that the first k of them are the choice of k.

    Exact, by fpsample's line of boxes, which skips boxes that a new point cannot change (QuickFPS, Han et al. 2023). It
    begins at a point of its own: a `start_idx` counts in the order of its tree, so that none can be asked for; the same
    points in the same order begin alike. Points that coincide with a chosen one come last, in any order.

    Args:
        points: M 3, finite, about the origin: the work is done in float32, which would round map coordinates.
        num: how many to choose; M or more give all M.

    Returns:
        S int64 indices into M, none twice, in the order of choosing.
    """
    num = min(num, len(points))
    if len(points) < 2:
        return np.arange(num)
    height = next(height for largest, height in HEIGHTS if len(points) <= largest)
    height = min(height, len(points).bit_length() - 1)
    chosen: np.ndarray = _fpsample().bucket_fps_kdline_sampling(points, num, height, start_idx=0).astype(np.int64)
    taken = np.zeros(len(points), bool)
    taken[chosen] = True
    if int(np.count_nonzero(taken)) == num:
        return chosen
    # Of duplicates nothing is far from what is chosen any more, and one point is chosen again and again
    first = np.sort(np.unique(chosen, return_index=True)[1])
    return np.concatenate([chosen[first], np.flatnonzero(~taken)[:num - len(first)]])


def _fpsample() -> ModuleType:
    try:
        return library("fpsample")
    except ImportError as error:
        raise ImportError("fpsample is missing, which `sample: farthest` needs. Install it with: pip install "
                          "'lacuna[pointcloud]', under Python 3.11 or 3.12, which it has wheels for; or set sample: "
                          "random.") from error
