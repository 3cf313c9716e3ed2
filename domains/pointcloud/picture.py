"""A cloud as a picture: seen obliquely from above, near points over far ones, in its own colours where it has some,
else by intensity, else shaded by depth. numpy only.

Legend: M points, S side of the picture in pixels.
"""

from __future__ import annotations

import math

import numpy as np

from domains.contract import Contract

SIDE = 256
HEADING, TILT = math.radians(35), math.radians(25)
"""From where the cloud is looked at: turned about the vertical axis, then tipped towards the viewer."""
BACKGROUND = (255, 255, 255)
NEAR, FAR = np.array([16, 42, 92]), np.array([170, 204, 232])
"""Colours of the nearest and the farthest point."""
UNKNOWN_NEAR, UNKNOWN_FAR = np.array([176, 32, 8]), np.array([250, 190, 150])
"""The same for points marked as not known: hidden from a model, or reconstructed by it."""
DARK, BRIGHT = np.array([30, 12, 60]), np.array([246, 214, 72])
"""Colours of the weakest and the strongest return, from the second to the 98th percentile of a cloud."""


def picture(values: np.ndarray, contract: Contract, known: np.ndarray | None = None) -> np.ndarray:
    """S S 3 uint8.

    Args:
        values: M F in stored units, of any float type; coordinates alone (M 3) are shaded by depth.
        known: M, or M F; points that are False are drawn in orange instead of blue. None: all are known.
    """
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values[:, :3]).all(axis=1)
    points, features = values[finite, :3], values[finite, 3:]
    told = np.ones((len(values), 1), bool) if known is None else np.asarray(known).reshape(len(values), -1)
    sure: np.ndarray = np.all(told[finite, :3], axis=1)
    image = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    image[:] = BACKGROUND
    if not len(points):
        return image
    unit = contract.normalisation == "unit_sphere"
    centre = np.zeros(3) if unit else points.mean(axis=0)
    reach = np.linalg.norm(points - centre, axis=1).max()
    reach = max(1.0, reach) if unit else max(reach, 1e-12)  # one scale for all clouds that lie in the unit sphere
    across, up, depth = _turned(points - centre).T / reach
    column = np.round((across * 0.92 + 1) / 2 * (SIDE - 1)).astype(np.int64)
    row = np.round((1 - up * 0.92) / 2 * (SIDE - 1)).astype(np.int64)
    _paint(image, row, column, depth, _colours(features, contract.names[3:], depth, sure))
    return image


def _turned(points: np.ndarray) -> np.ndarray:
    """Into the viewer's axes: right, up, away."""
    x, y, z = points.T
    right = math.cos(HEADING) * x - math.sin(HEADING) * y
    away = math.sin(HEADING) * x + math.cos(HEADING) * y
    return np.stack([right, math.cos(TILT) * z + math.sin(TILT) * away, math.cos(TILT) * away - math.sin(TILT) * z], 1)


def _colours(features: np.ndarray, names: tuple[str, ...], depth: np.ndarray, known: np.ndarray) -> np.ndarray:
    """M 3 from 0 to 255: by depth where the cloud has neither colour nor intensity, or lacks it at a point."""
    low, span = depth.min(), max(np.ptp(depth), 1e-12)
    share = ((depth - low) / span)[:, None]
    colour = np.where(known[:, None], NEAR + share * (FAR - NEAR), UNKNOWN_NEAR + share * (UNKNOWN_FAR - UNKNOWN_NEAR))
    if features.shape[1] != len(names):
        return colour
    if "red" in names:
        own = 255 * features[:, names.index("red"):][:, :3].clip(0, 1)
    elif "intensity" in names and np.isfinite(features[:, names.index("intensity")]).any():
        returned = features[:, [names.index("intensity")]]
        weak, strong = np.nanpercentile(returned, (2, 98))
        own = DARK + ((returned - weak) / max(strong - weak, 1e-12)).clip(0, 1) * (BRIGHT - DARK)
    else:
        return colour
    return np.where(known[:, None] & np.isfinite(own).all(axis=1, keepdims=True), own, colour)


def _paint(image: np.ndarray, row: np.ndarray, column: np.ndarray, depth: np.ndarray, colour: np.ndarray) -> None:
    """Discs from far to near, smaller where there are many points, so that sparse clouds still look like surfaces."""
    radius = 1 if len(row) > 3000 else 2
    order = np.argsort(-depth, kind="stable")
    steps = np.arange(-radius, radius + 1)
    disc = [(dy, dx) for dy in steps for dx in steps if dy * dy + dx * dx <= radius * radius + 1]
    y = np.concatenate([(row[order] + dy)[:, None] for dy, _ in disc], axis=1).ravel().clip(0, SIDE - 1)
    x = np.concatenate([(column[order] + dx)[:, None] for _, dx in disc], axis=1).ravel().clip(0, SIDE - 1)
    # numpy keeps the last of repeated indices, which is the nearest point
    image[y, x] = np.repeat(np.round(colour[order]).astype(np.uint8), len(disc), axis=0)
