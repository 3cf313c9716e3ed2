"""A scene as a person expects to see it: red, green and blue where these bands are there, unknown pixels in magenta.
Where some of the three bands are known and others are not (hidden by a mask, cut off in one band), the known ones shine
alone.

Legend: C bands, H W rows and columns.
"""

from __future__ import annotations

import re

import numpy as np

from domains.contract import Channel, Contract

TARGETS = (("red", 660.0), ("green", 560.0), ("blue", 490.0))
NEAR_ENOUGH_NM = 40.0
"""How far a band's centre may lie from a colour's to stand for it: red edge (704) must not pass for red."""
UNKNOWN_COLOUR = (255, 0, 255)
STRETCH = (2.0, 98.0)
"""Percentiles of the known values that become black and white."""
LEAST_SPAN = 0.02
"""Narrowest stretch as a share of the channel's range: a flat scene must not turn its noise into a picture."""


def picture(values: np.ndarray, contract: Contract, known: np.ndarray | None = None) -> np.ndarray:
    """Args:
        values: C H W in stored units. known: C H W bool; None: all but the contract's unknown value.

    Returns:
        H W 3 uint8.
    """
    numbers = np.asarray(values, np.float64)
    sure = np.isfinite(numbers)
    if contract.unknown is not None:
        sure &= numbers != contract.unknown
    if known is not None:
        sure &= known
    image = np.zeros((*numbers.shape[1:], 3))
    bands = colours(contract.channels, sure)
    for gun, band in enumerate(bands):
        image[..., gun] = _stretch(numbers[band], sure[band], contract.channels[band])
    pixels = np.rint(image * 255).astype(np.uint8)
    pixels[~sure[list(bands)].any(axis=0)] = UNKNOWN_COLOUR
    return pixels


def colours(channels: tuple[Channel, ...], known: np.ndarray) -> tuple[int, int, int]:
    """The bands that are shown as red, green and blue: by wavelength, else by name, else the first three (a single band
    as grey). Bands that are wholly unknown are passed over, so that the others can still be seen."""
    filled = [i for i in range(len(channels)) if known[i].any()] or list(range(len(channels)))
    found = [_best(channels, filled, name, nm) for name, nm in TARGETS]
    chosen = [band for band in found if band is not None]
    if len(chosen) < len(TARGETS):
        chosen = (filled * 3)[:3] if len(filled) < 3 else filled[:3]
    return chosen[0], chosen[1], chosen[2]


def _best(channels: tuple[Channel, ...], filled: list[int], name: str, nm: float) -> int | None:
    distances = {i: abs(wave - nm) for i in filled if (wave := channels[i].wavelength_nm) is not None}
    near = [i for i, distance in distances.items() if distance <= NEAR_ENOUGH_NM]
    if near:
        return min(near, key=lambda i: distances[i])
    return next((i for i in filled if re.fullmatch(name, channels[i].name, re.IGNORECASE)), None)


def _stretch(values: np.ndarray, known: np.ndarray, channel: Channel) -> np.ndarray:
    """H W in [0, 1]."""
    if not known.any():
        return np.zeros(values.shape)
    low, high = np.percentile(values[known], STRETCH)
    span = max(high - low, LEAST_SPAN * (channel.high - channel.low))
    return np.where(known, np.clip((values - low) / span, 0.0, 1.0), 0.0)
