"""What goes wrong with films and volumes at another site: exposure, contrast, calibration, noise, resolution, position.

Legend: C channels, D H W voxels (D is absent for films).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from domains.contract import Contract
from domains.corruption import Corruption, known_of, noise, resolution, stored, turned, turned_mask


def corruptions(contract: Contract) -> Mapping[str, Corruption]:
    """Those that this kind of data has, by name."""
    both = {"resolution": resolution(),
            "rotation": Corruption("degrees", (5.0, 10.0, 20.0, 45.0), 180.0, turned, moved=turned_mask)}
    if contract.kind == "ct":
        return {"hu_shift": Corruption("HU", (25.0, 50.0, 100.0, 200.0), 2000.0, shifted),
                "noise": Corruption("HU", (50.0, 100.0, 200.0, 400.0), 4000.0, noise), **both}
    return {"exposure": Corruption("grey levels of 255", (16.0, 32.0, 64.0, 96.0), 255.0, shifted),
            "contrast": Corruption("share of contrast lost", (0.2, 0.4, 0.6, 0.8), 1.0, flatter),
            "noise": Corruption("grey levels of 255", (8.0, 16.0, 32.0, 64.0), 255.0, noise), **both}


def shifted(values: np.ndarray, contract: Contract, strength: float, chance: np.random.Generator) -> np.ndarray:
    """All values higher or lower by this, by chance: a scanner's calibration, or a film's exposure, whose grey levels
    count the logarithm of the dose."""
    sign = 1.0 if chance.random() < 0.5 else -1.0
    return stored(values.astype(np.float32) + sign * strength, known_of(values, contract), contract)


def flatter(values: np.ndarray, contract: Contract, strength: float, chance: np.random.Generator) -> np.ndarray:
    """Contrast lost about the mean grey of the training data, as scatter and another energy of the rays do."""
    middle = np.array([channel.mean for channel in contract.channels], np.float32)
    middle = middle.reshape(-1, *(1,) * (values.ndim - 1))
    return stored(middle + (1 - strength) * (values - middle), known_of(values, contract), contract)
