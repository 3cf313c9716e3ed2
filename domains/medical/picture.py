"""What a person wants to see of one sample. numpy only.

Legend: C channels, D H W voxels (D is absent for films).
"""

from __future__ import annotations

import numpy as np

from domains.contract import Channel, Contract

UNKNOWN_RGB = (96, 0, 96)
"""Colour of places without data: none that a grey picture can hold."""
SPREAD = 2.5
"""Standard deviations on each side of the mean that the grey scale covers."""
NARROWEST_HU = 100.0
"""A narrower window means that the contract holds no statistics yet."""


def picture(values: np.ndarray, contract: Contract, known: np.ndarray | None = None) -> np.ndarray:
    """H W 3 uint8. A film as it is; a volume as its axial, coronal and sagittal mid-planes side by side.

    Args:
        values: C H W or C D H W in stored units, integers or floats (a reconstruction).
        known: which values are known. None: all that differ from the contract's unknown.
    """
    if known is None:
        known = np.ones(values.shape, bool) if contract.unknown is None else values != contract.unknown
    if contract.kind == "xray":
        return _paint(values[0], known[0], (0.0, 255.0))
    window = _window(contract.channels[0])
    return _side_by_side([_paint(one, seen.astype(bool), window)
                          for one, seen in zip(_mid_planes(values[0], contract), _mid_planes(known[0], contract),
                                               strict=True)])


def section(values: np.ndarray, contract: Contract, axis: int, index: int) -> np.ndarray:
    """H W 3 uint8: one plane of a volume, axial (axis 0), coronal (1) or sagittal (2), as `picture` would show it."""
    known = np.ones(values.shape, bool) if contract.unknown is None else values != contract.unknown
    return _paint(plane(values[0], contract, axis, index), plane(known[0], contract, axis, index).astype(bool),
                  _window(contract.channels[0]))


def plane(volume: np.ndarray, contract: Contract, axis: int, index: int) -> np.ndarray:
    """One plane of D H W, turned and stretched as pictures are: superior at the top, square pixels."""
    z, y, x = contract.spacing or (1.0, 1.0, 1.0)
    match axis:
        case 0:
            return _isotropic(volume[index], (y, x))
        case 1:
            return _isotropic(volume[::-1, index], (z, x))
    return _isotropic(volume[::-1, :, index], (z, y))


def _paint(values: np.ndarray, known: np.ndarray, window: tuple[float, float]) -> np.ndarray:
    low, high = window
    grey = np.round(np.clip((values.astype(np.float32) - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    return np.where(known[..., None], grey[..., None], np.array(UNKNOWN_RGB, dtype=np.uint8))


def _window(channel: Channel) -> tuple[float, float]:
    """What most voxels of the training data hold, within what a model is shown. From the contract alone, so that a
    reconstruction and its original are painted alike."""
    low = max(channel.low, channel.mean - SPREAD * channel.std)
    high = min(channel.high, channel.mean + SPREAD * channel.std)
    return (low, high) if high - low >= NARROWEST_HU else (channel.low, channel.high)


def _mid_planes(volume: np.ndarray, contract: Contract) -> list[np.ndarray]:
    """Stored axes run superior, posterior, left: superior is turned to the top, as films are read, and the axial plane
    is seen from the feet."""
    return [plane(volume, contract, axis, n // 2) for axis, n in enumerate(volume.shape)]


def _isotropic(plane: np.ndarray, steps: tuple[float, float]) -> np.ndarray:
    """Repeat rows or columns so that pixels are square."""
    finest = min(steps)
    rows, columns = (np.minimum((np.arange(round(n * step / finest)) * finest / step).astype(np.int64), n - 1)
                     for n, step in zip(plane.shape, steps, strict=True))
    return plane[rows][:, columns]


def _side_by_side(panels: list[np.ndarray]) -> np.ndarray:
    height = max(panel.shape[0] for panel in panels)
    gap = np.full((height, 2, 3), 255, dtype=np.uint8)
    strip: list[np.ndarray] = []
    for panel in panels:
        padded = np.zeros((height, panel.shape[1], 3), dtype=np.uint8)
        top = (height - panel.shape[0]) // 2
        padded[top:top + panel.shape[0]] = panel
        strip += [padded, gap]
    return np.concatenate(strip[:-1], axis=1)
