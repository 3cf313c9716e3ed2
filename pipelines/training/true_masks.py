"""The true mask of a sample, as class numbers of a task."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from domains.store import Prepared


def true_mask(prepared: Prepared, task: str, row: int) -> npt.NDArray[np.uint8]:
    """H W, D H W or M: 0 background, 1 ... K classes, UNKNOWN_CLASS where nobody has looked."""
    mask = prepared.mask(row)
    assert mask is not None, "a row of a segmentation task has a mask"
    classes: npt.NDArray[np.uint8] = prepared.contract.tasks[task].class_of()[mask]
    return classes
