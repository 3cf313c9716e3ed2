"""What goes wrong with scenes: bands that are missing, sensor noise, coarser pixels, another heading.

Legend: C bands, H W rows and columns.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from domains.contract import Contract
from domains.corruption import Corruption, noise, resolution, turned, turned_mask

NOISE_SHARES = (0.25, 0.5, 1.0, 2.0)
"""Noise that is tried, as shares of the median band's standard deviation; a run's strengths are in the data's unit."""


def corruptions(contract: Contract) -> Mapping[str, Corruption]:
    """Those that this data has, by name. Bands can be missing where it has a value for unknown pixels and more than one
    band."""
    bands = len(contract.channels)
    spread = float(np.median([channel.std for channel in contract.channels]))
    levels = tuple(float(f"{share * spread:.2g}") for share in NOISE_SHARES)
    found = {"noise": Corruption(contract.channels[0].unit, levels, 1e6, noise),
             "resolution": resolution(),
             "rotation": Corruption("degrees", (10.0, 20.0, 30.0, 45.0), 180.0, turned, moved=turned_mask)}
    if contract.unknown is None or bands < 2:
        return found
    counts = sorted({max(1, round(share * bands)) for share in (0.0, 0.25, 0.5, 0.75)} - {bands})
    missing = Corruption("bands", tuple(float(count) for count in counts), bands - 1.0, without_bands)
    return {"missing_bands": missing, **found}


def without_bands(values: np.ndarray, contract: Contract, strength: float, chance: np.random.Generator) -> np.ndarray:
    """So many bands hold nothing; which ones, the sample decides, and those of a lower strength are among them."""
    assert contract.unknown is not None
    out = values.copy()
    out[chance.permutation(len(values))[:round(strength)]] = contract.unknown
    return out
