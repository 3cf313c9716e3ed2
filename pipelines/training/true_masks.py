"""The true mask of a sample, as class numbers of a task."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import numpy.typing as npt

from domains.sample import UNKNOWN_CLASS
from domains.store import Prepared
from pipelines.training.batches import Source


def true_mask(prepared: Prepared, task: str, row: int) -> npt.NDArray[np.uint8]:
    """H W, D H W or M: 0 background, 1 ... K classes. UNKNOWN_CLASS where nobody has looked, where the mask has a
    number that is no class of the task, or a class that was not looked for in this sample."""
    mask = prepared.mask(row)
    assert mask is not None, "a row of a segmentation task has a mask"
    of_class = prepared.contract.tasks[task].class_of()
    unlooked = np.flatnonzero(np.isnan(prepared.labels(task)[row])) + 1
    of_class[np.isin(of_class, unlooked)] = UNKNOWN_CLASS
    return of_class[mask]


def with_masks(source: Source, task: str, around: float = 0.0) -> Source:
    """The source with the masks of a segmentation task; as it is for any other task.

    Args:
        around: share of training crops that are placed around a pixel of a class.
    """
    about = source.prepared.contract.tasks[task]
    if about.kind != "segmentation":
        return source
    return dataclasses.replace(source, masks=partial(true_mask, source.prepared, task), num_classes=len(about.classes),
                               around=around)
