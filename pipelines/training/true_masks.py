"""The true masks of a task: as they are stored, and as class numbers of the task.

Legend: n rows, K classes without the background.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from domains.sample import UNKNOWN_CLASS
from domains.store import Prepared
from pipelines.training.batches import Source

_HELD: WeakKeyDictionary[Prepared, dict[str, npt.NDArray[np.int8]]] = WeakKeyDictionary()
"""Of open data: task -> n K, whether a row's mask has a pixel of a class; -1: not looked at yet."""


def true_mask(prepared: Prepared, task: str, row: int) -> npt.NDArray[np.uint8]:
    """H W, D H W or M: 0 background, 1 ... K classes. UNKNOWN_CLASS where nobody has looked, where the mask has a
    number that is no class of the task, or a class that was not looked for in this sample."""
    masks = TrueMasks(prepared, task)
    return masks.class_of(row)[masks.stored(row)]


@dataclass(frozen=True)
class TrueMasks:
    """The masks of a segmentation task. What is cut out of one is cut as it is stored and then turned into classes: a
    crop of a volume must not cost a pass over all of it."""

    prepared: Prepared
    task: str

    @property
    def num_classes(self) -> int:
        """Background included."""
        return len(self.prepared.contract.tasks[self.task].classes)

    def stored(self, row: int) -> npt.NDArray[np.uint8]:
        """H W, D H W or M numbers as ingest has read them; a read-only view."""
        mask = self.prepared.mask(row)
        assert mask is not None, "a row of a segmentation task has a mask"
        return mask

    def class_of(self, row: int) -> npt.NDArray[np.uint8]:
        """256: number -> class, as `true_mask` says; 255 is UNKNOWN_CLASS always."""
        of_class = self.prepared.contract.tasks[self.task].class_of()
        unlooked = np.flatnonzero(np.isnan(self.prepared.labels(self.task)[row])) + 1
        of_class[np.isin(of_class, unlooked)] = UNKNOWN_CLASS
        return of_class

    def held(self, row: int) -> npt.NDArray[np.bool_]:
        """K: which classes the true mask has a pixel of. A mask is looked through once for as long as the data is
        open: every crop around a class, and every cell of a verdict, asks again."""
        known = _HELD.setdefault(self.prepared, {})
        if self.task not in known:
            known[self.task] = np.full((len(self.prepared), self.num_classes - 1), -1, np.int8)
        found = known[self.task][row]
        if (found < 0).any():
            numbers = np.flatnonzero(np.bincount(self.stored(row).ravel(), minlength=256))
            found[:] = np.isin(np.arange(1, self.num_classes), self.class_of(row)[numbers])
        return found > 0

    def numbers_held(self, row: int) -> npt.NDArray[np.intp]:
        """The stored numbers of these classes, in the classes' order."""
        values = self.prepared.contract.tasks[self.task].values or range(self.num_classes)
        return np.array(values[1:], np.intp)[self.held(row)]


def with_masks(source: Source, task: str, around: float = 0.0) -> Source:
    """The source with the masks of a segmentation task; as it is for any other task.

    Args:
        around: share of training crops that are placed around a pixel of a class.
    """
    if source.prepared.contract.tasks[task].kind != "segmentation":
        return source
    return dataclasses.replace(source, masks=TrueMasks(source.prepared, task), around=around)
